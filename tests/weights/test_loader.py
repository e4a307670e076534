"""What is read when: shards one by one, a hub's weights last, the wrong not at all."""

import fnmatch
import json
import pathlib
import shutil
from collections import Counter

import jax
import numpy as np
import pytest

import tpmm_jax as tpmm
from tpmm_jax.errors import BadInput
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import Decoder
from tpmm_jax.weights import huggingface, loading
from tpmm_jax.weights.hf_config import parse_config
from tpmm_jax.weights.huggingface import SafetensorsDirectory, read_params

UP = "model.layers.1.mlp.up_proj.weight"


def open_source(folder):
    """A source that counts its reads, and a model's config."""
    source, asked = SafetensorsDirectory(folder), Counter()
    read = source.tensor
    source.tensor = lambda name: asked.update([name]) or read(name)
    hf = json.loads((folder / "config.json").read_text())
    return source, parse_config(hf, "config.json"), asked


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "mesh, reads", [((8, 1, 1), 1), ((4, 2, 1), 2), ((2, 2, 2), 4)]
)
def test_a_tensor_is_read_once_a_distinct_shard(fixtures, mesh, reads, dtype):
    source, config, asked = open_source(fixtures / "qwen3")
    mesh = make_mesh(MeshConfig(data=mesh[0], fsdp=mesh[1], tensor=mesh[2]))
    decoder = Decoder(config, mesh=mesh)
    params = read_params(source, decoder, dtype)
    assert asked[UP] == reads and max(asked.values()) <= reads
    plain = tpmm.load(fixtures / "qwen3", dtype=dtype).params
    target = decoder.abstract_params(dtype)

    def compare(x, y, leaf):
        assert x.sharding == leaf.sharding and x.dtype == leaf.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))

    jax.tree.map(compare, params, plain, target)


def test_one_shard_is_on_its_devices_before_the_next_is_built(fixtures, monkeypatch):
    source, config, _ = open_source(fixtures / "llama")
    decoder = Decoder(config, mesh=make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    events = []
    put, tensor = jax.device_put, source.tensor
    source.tensor = lambda name: events.append("read") or tensor(name)
    monkeypatch.setattr(
        huggingface.jax, "device_put", lambda *a: events.append("put") or put(*a)
    )
    read_params(source, decoder, "float32")
    runs = "".join(e[0] for e in events).split("p")
    # At most one shard's layers are read between two transfers.
    assert max(map(len, runs)) <= config.num_layers


COMMIT = "0123abc" * 5 + "01234"


@pytest.fixture
def hub(fixtures, tmp_path, monkeypatch):
    """A hub of one repository; returns the calls of snapshot_download."""
    repo = tmp_path / "repo"
    shutil.copytree(fixtures / "llama", repo)
    (repo / "tokenizer.model").write_text("")
    (repo / "pytorch_model.bin").write_bytes(b"pickle")
    (repo / "modeling_x.py").write_text("")
    (repo / "original").mkdir()
    (repo / "original" / "consolidated.safetensors").write_bytes(b"")
    (repo / "consolidated.safetensors").write_bytes(b"")
    calls = []

    def snapshot_download(name, *, revision, allow_patterns, ignore_patterns):
        snapshot = tmp_path / "snapshots" / COMMIT
        new = []
        for path in repo.rglob("*"):
            file = str(path.relative_to(repo))
            if path.is_dir() or any(fnmatch.fnmatch(file, p) for p in ignore_patterns):
                continue
            if any(fnmatch.fnmatch(file, p) for p in allow_patterns):
                (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, snapshot / file)
                new.append(file)
        calls.append((name, revision, sorted(new)))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(loading, "read_tokenizer", lambda directory: None)
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_hubs_weights_are_fetched_when_they_are_read(hub, fixtures):
    found = loading.resolve("org/name", "main")
    name, revision, files = hub[0]
    assert (name, revision) == ("org/name", "main") and len(hub) == 1
    assert {"config.json", "tokenizer.model"} <= {*files}
    assert not any(f.endswith((".safetensors", ".py", ".bin")) for f in files)
    assert found.origin == {"source": "org/name", "commit": COMMIT}
    params = found.read(Decoder(found.config), "float32")
    assert hub[1:] == [("org/name", COMMIT, ["model.safetensors"])]
    wanted = tpmm.load(fixtures / "llama").params
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


def test_a_hubs_tensors_are_checked_when_they_are_read(hub, tmp_path):
    (tmp_path / "repo" / "model.safetensors").unlink()
    found = loading.resolve("org/name")
    with pytest.raises(BadInput, match=r"neither model\.safetensors"):
        found.read(Decoder(found.config), "float32")


def test_a_hub_config_that_is_not_understood_costs_no_weights(hub, tmp_path):
    path = tmp_path / "repo" / "config.json"
    path.write_text(path.read_text().replace("{", '{"mystery": 1,', 1))
    with pytest.raises(BadInput, match="mystery"):
        tpmm.load("org/name")
    assert len(hub) == 1


@pytest.mark.parametrize(
    "name, workdir",
    [
        ("trajectory@3", None), ("dir/trajectory@3", "dir/"), ("./trajectory@3", "./"),
        ("/a/b/trajectory@12", "/a/b/"), ("/trajectory@3", "/"),
    ],
)  # fmt: skip
def test_a_step_of_a_trajectory(name, workdir):
    match = loading.TRAJECTORY_STEP.fullmatch(name)
    assert match and match["workdir"] == workdir
    assert not loading.is_hub_id(name)
    with pytest.raises(BadInput, match=f"^{workdir or '.'}".rstrip("/")):
        tpmm.load(name)


@pytest.mark.parametrize(
    "name", ["mytrajectory@3", "dir/mytrajectory@3", "trajectory@", "trajectory@3/x"]
)
def test_other_names_are_no_step(name, tmp_path):
    assert not loading.TRAJECTORY_STEP.fullmatch(name)
    with pytest.raises(BadInput, match="no such directory"):
        tpmm.load(str(pathlib.Path(tmp_path) / name))


GOOD = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 8,
    "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 9,
    "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 1e4,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "eos_token_id": 1,
}  # fmt: skip
WRONG = {
    "rope_theta": "abc", "eos_token_id": "x", "rms_norm_eps": "1e-5",
    "num_key_value_heads": "2", "head_dim": 7, "tie_word_embeddings": "no",
    "rope_scaling": 3, "hidden_act": ["silu"], "layer_types": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    "field, value",
    [
        *WRONG.items(), ("head_dim", 16.0), ("head_dim", -2), ("head_dim", 0),
        ("rms_norm_eps", float("nan")), ("rope_theta", float("inf")), ("rope_theta", 0),
        ("num_attention_heads", 3), ("num_key_value_heads", 3), ("rope_scaling", []),
        ("rope_scaling", "linear"), ("rope_parameters", False),
        ("eos_token_id", [True]), ("layer_types", [["full_attention"]]),
        ("tie_word_embeddings", 1),
    ],
)  # fmt: skip
def test_a_field_of_a_wrong_type_is_named(field, value):
    parse_config(GOOD, "config.json")
    with pytest.raises(BadInput, match=f"config.json.*\n.*{field}") as error:
        parse_config(GOOD | {field: value}, "config.json")
    assert str(error.value).count("\n") == 1


def test_wrong_types_are_named_all_at_once():
    bad = GOOD | WRONG | {"num_attention_heads": 5, "num_key_value_heads": 2}
    with pytest.raises(BadInput) as error:
        parse_config(bad, "config.json")
    for field in {*WRONG, "num_attention_heads"}:
        assert field in str(error.value)


@pytest.mark.parametrize(
    "heads, width, good", [(4, 64, True), (4, 66, False), (4, 20, False)]
)
def test_without_a_head_dim_the_width_is_split_evenly(heads, width, good):
    hf = GOOD | {"head_dim": None, "num_attention_heads": heads, "hidden_size": width}
    if good:
        assert parse_config(hf, "config.json").head_dim == width // heads
        return
    with pytest.raises(BadInput, match=f"hidden_size = {width} .*no head_dim"):
        parse_config(hf, "config.json")


@pytest.mark.parametrize("eos", ['"x"', "[1, null]", "1.5", "{}"])
def test_eos_ids_of_a_generation_config_are_checked(fixtures, tmp_path, eos):
    shutil.copy(fixtures / "llama" / "config.json", tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text(f'{{"eos_token_id": {eos}}}')
    with pytest.raises(BadInput, match=r"generation_config\.json: eos_token_id"):
        loading.read_config(tmp_path)
