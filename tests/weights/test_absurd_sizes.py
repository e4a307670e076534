"""A config that claims absurd sizes ends at once, in an error that names them."""

import json
import shutil

import command_runs
import jax
import jax.numpy as jnp
import pytest

from tpmm_jax.errors import BadInput
from tpmm_jax.models import Decoder, LoraConfig
from tpmm_jax.models.config import LIMITS
from tpmm_jax.models.families import make_config
from tpmm_jax.store import Trajectory
from tpmm_jax.weights.description import read_json, write_description
from tpmm_jax.weights.hf_config import parse_config
from tpmm_jax.weights.loading import resolve

HUGE = 10**400
SIZES = {
    "vocab_size": 9, "hidden_size": 24, "intermediate_size": 8, "head_dim": 6,
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize("value", [10**9, 10**12, HUGE])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3"])
def test_sizes_beyond_any_model(family, name, value):
    hf = {"model_type": family, **SIZES, name: value}
    with pytest.raises(BadInput, match=f"{name} = "):
        parse_config(hf, "config.json")


@pytest.mark.parametrize(
    "name",
    [
        "max_position_embeddings", "rms_norm_eps", "rope_theta", "sliding_window",
        "query_pre_attn_scalar", "final_logit_softcapping", "rope_local_base_freq",
    ],
)  # fmt: skip
def test_numbers_beyond_what_is_computed_with(name):
    hf = {"model_type": "gemma3_text", **SIZES, name: HUGE}
    wanted = "sliding_attention" if name == "rope_local_base_freq" else name
    with pytest.raises(BadInput, match=wanted):
        parse_config(hf, "config.json")


@pytest.fixture
def folder(fixtures, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(fixtures / "llama" / name, tmp_path / name)
    return tmp_path


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "name, value, wanted",
    [
        ("num_hidden_layers", 900, "lacks .* tensors .* 900 layers"),
        ("hidden_size", 2**18, r"embed_tokens.weight has shape .*, 262144\)"),
        ("vocab_size", 2**24, r"embed_tokens.weight has shape .*\(16777216, "),
        ("intermediate_size", 2**21, "mlp.gate_proj.weight has shape"),
        ("num_attention_heads", 2**14, "self_attn.q_proj.weight has shape"),
        ("head_dim", 2**14, "self_attn.q_proj.weight has shape"),
    ],
)
def test_sizes_are_held_against_the_weights_first(folder, name, value, wanted):
    edit(folder, **{name: value})
    # The weights are not read: what ends here has allocated nothing.
    with pytest.raises(BadInput, match=f"{folder}.*{wanted}"):
        resolve(folder)


@pytest.mark.parametrize("content", ["[" * 10**6, '{"a":' * 900 + "1" + "}" * 900])
def test_nested_brackets_are_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadInput, match=r"config\.json"):
        read_json(tmp_path / "config.json")


def test_nested_brackets_in_every_file_of_a_directory(folder):
    command_runs.tokenizer().save_pretrained(folder)
    # Beside adapter weights the file counts; alone it is what a merge left.
    (folder / "adapter_model.safetensors").write_bytes(b"")
    for name in (
        "config.json", "generation_config.json", "adapter_config.json",
        "tokenizer_config.json", "tokenizer.json", "model.safetensors.index.json",
    ):  # fmt: skip
        path, kept = folder / name, None
        if path.exists():
            kept = path.read_text()
        if name.endswith("index.json"):
            (folder / "model.safetensors").unlink()
        path.write_text("[" * 10**6)
        with pytest.raises(BadInput) as error:
            resolve(folder)
        assert str(folder) in str(error.value) and len(str(error.value)) < 1000
        path.unlink() if kept is None else path.write_text(kept)


@pytest.mark.parametrize("name", LIMITS)
def test_a_new_model_beyond_any_size_is_refused(name):
    sizes = {
        "vocab_size": 9, "width": 8, "mlp_width": 8, "num_layers": 1, "num_heads": 2,
        "num_kv_heads": 1, "head_dim": 4,
    }  # fmt: skip
    make_config("llama", **sizes)
    with pytest.raises(BadInput, match=f"{name} is"):
        make_config("llama", **sizes | {name: LIMITS[name] + 1})


def test_a_new_model_beyond_the_memory_is_refused():
    sizes = {"width": 2**18, "mlp_width": 2**21, "num_layers": 2000}
    config = make_config(
        "llama", vocab_size=9, num_heads=2**14, num_kv_heads=1, **sizes
    )
    with pytest.raises(BadInput, match="GB; this machine has"):
        Decoder(config).init(jax.random.key(0))


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 900}, {"hidden_size": 2**18}]
)
def test_a_runs_config_is_held_against_its_trajectory(tmp_path, changes):
    config = make_config(
        "llama", vocab_size=9, width=8, mlp_width=8, num_layers=1, num_heads=2,
        num_kv_heads=1, head_dim=4,
    )  # fmt: skip
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape), Decoder(config).abstract_params()
    )
    (tmp_path / "model").mkdir()
    write_description(config, None, "float32", tmp_path / "model")
    with Trajectory(tmp_path / "trajectory") as trajectory:
        trajectory.append(0, zeros, {"iteration": 0})
    assert resolve(tmp_path).config == config
    edit(tmp_path / "model", **changes)
    with pytest.raises(BadInput, match=r"model/config\.json is not that of the run"):
        resolve(tmp_path)


def test_a_rank_beyond_any_model_is_refused():
    with pytest.raises(BadInput, match=r"model\.lora\.rank is 1,000,000,000"):
        LoraConfig(rank=10**9).validate()
