"""Hugging Face directories in and out."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tpmm_jax as tpmm
from tpmm_jax.errors import BadInput
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import Decoder, ExpertsConfig, RopeConfig
from tpmm_jax.models.families import FAMILIES, make_config
from tpmm_jax.models.published import SIZES
from tpmm_jax.weights.hf_config import parse_config, write_config
from tpmm_jax.weights.huggingface import (
    INDEX,
    SafetensorsDirectory,
    read_params,
    write_params,
)

FOLDERS = (
    "gemma", "gemma2", "gemma3", "llama", "llama2", "llama_bias", "mistral", "qwen2",
    "qwen3",
)  # fmt: skip


def bits(params):
    return jax.tree.map(lambda x: np.asarray(x).tobytes(), params)


@pytest.fixture
def copy(fixtures, tmp_path):
    """A private copy of a fixture's config and weights."""

    def make(family="llama"):
        folder = tmp_path / family
        folder.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(fixtures / family / name, folder / name)
            (folder / name).chmod(0o644)
        return folder

    return make


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FOLDERS)
def test_save_and_load_give_equal_bits(fixtures, tmp_path, family, dtype):
    model = tpmm.load(fixtures / family, dtype=dtype)
    tpmm.save(model, tmp_path / "deep" / "out")
    again = tpmm.load(tmp_path / "deep" / "out", dtype=dtype)
    assert again.config == model.config
    assert bits(again.params) == bits(model.params)
    files = {path.name for path in (tmp_path / "deep").iterdir()}
    assert files == {"out"}


@pytest.mark.parametrize("family", FOLDERS)
def test_saved_tensors_are_the_ones_that_were_read(fixtures, tmp_path, family):
    tpmm.save(tpmm.load(fixtures / family), tmp_path / "out")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    theirs = load_file(fixtures / family / "model.safetensors")
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        np.testing.assert_array_equal(ours[name], tensor)


def test_bfloat16_is_stored_as_bfloat16(fixtures, tmp_path):
    model = tpmm.load(fixtures / "llama", dtype=jnp.bfloat16)
    tpmm.save(model, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(x.dtype) for x in tensors.values()} == {"bfloat16"}
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == (
        "bfloat16"
    )
    wide = tpmm.load(tmp_path / "out", dtype="float32")
    assert bits(jax.tree.map(lambda x: x.astype(jnp.bfloat16), wide.params)) == bits(
        model.params
    )


@pytest.mark.parametrize("family", FOLDERS)
def test_every_family_survives_a_sharded_index(fixtures, tmp_path, family):
    model = tpmm.load(fixtures / family)
    tpmm.save(model, tmp_path / "out", max_shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    again = tpmm.load(tmp_path / "out")
    assert again.config == model.config and bits(again.params) == bits(model.params)


@pytest.mark.parametrize("max_shard_bytes, files", [(1, 19), (100_000, None)])
def test_a_sharded_index_in_and_out(fixtures, tmp_path, max_shard_bytes, files):
    model = tpmm.load(fixtures / "gemma")
    tpmm.save(model, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    write_params(
        model.params, model.config, tmp_path / "out", max_shard_bytes=max_shard_bytes
    )
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    size = sum(x.nbytes for x in jax.tree.leaves(model.params))
    assert index["metadata"]["total_size"] == size
    shards = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == shards
    tensors = load_file(fixtures / "gemma" / "model.safetensors")
    assert set(index["weight_map"]) == set(tensors)
    for shard in shards:
        held = load_file(tmp_path / "out" / shard)
        assert len(held) == 1 or sum(x.nbytes for x in held.values()) <= max_shard_bytes
    assert len(shards) > 2
    again = tpmm.load(tmp_path / "out")
    assert bits(again.params) == bits(model.params)


def test_parameters_are_read_onto_a_mesh(fixtures):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    one, many = (tpmm.load(fixtures / "qwen3", mesh=m) for m in (None, mesh))
    up = many.params["layers"]["mlp"]["up"]
    assert up.sharding.shard_shape(up.shape) == (2, 32, 64)
    assert bits(one.params) == bits(many.params)


def test_float16_weights_are_widened(copy):
    folder = copy()
    edit_weights(
        folder, lambda t: t.update({n: x.astype(np.float16) for n, x in t.items()})
    )
    params = tpmm.load(folder).params
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_weights_of_whole_numbers_are_refused(copy):
    folder = copy()

    def quantise(tensors):
        name = "model.layers.1.mlp.up_proj.weight"
        tensors[name] = tensors[name].astype(np.int8)

    edit_weights(folder, quantise)
    with pytest.raises(BadInput, match=r"layers\.1\.mlp\.up_proj\.weight.*int8"):
        tpmm.load(folder)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("name", ["layers.1.mlp.up_proj", "norm"])
def test_weights_that_are_not_finite_are_named(copy, name, value):
    folder = copy()

    def damage(tensors):
        tensors[f"model.{name}.weight"] = tensors[f"model.{name}.weight"].copy()
        tensors[f"model.{name}.weight"].flat[-1] = value

    edit_weights(folder, damage)
    with pytest.raises(BadInput, match=rf"^model\.{name}\.weight has weights"):
        tpmm.load(folder)


Q, UP, NORM = (
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.norm.weight",
)


@pytest.mark.parametrize("name", [Q, UP, NORM, "model.embed_tokens.weight"])
def test_a_missing_tensor_is_named(copy, name):
    folder = copy()
    edit_weights(folder, lambda t: t.pop(name))
    with pytest.raises(BadInput, match=f"lacks 1 .*{name}"):
        tpmm.load(folder)


@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.weight", "score.weight"])
def test_a_tensor_too_many_is_named(copy, name):
    folder = copy()
    edit_weights(folder, lambda t: t.update({name: np.zeros((3, 3), np.float32)}))
    with pytest.raises(BadInput, match=f"unknown 1 .*{name}"):
        tpmm.load(folder)


def test_derived_tensors_and_a_tied_head_are_no_fault(copy):
    folder = copy("gemma")

    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, "f4")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    edit_weights(folder, add)
    assert "head" not in tpmm.load(folder).params


@pytest.mark.parametrize(
    "name", [Q, UP, NORM, "model.layers.0.self_attn.o_proj.weight"]
)
@pytest.mark.parametrize("how", ["cut", "turned", "flat"])
def test_a_tensor_of_another_shape_is_named(copy, name, how):
    folder = copy("qwen3")

    def change(tensors):
        x = tensors[name]
        changed = {"cut": x[:-1], "turned": x.T, "flat": x.reshape(-1)}[how]
        if changed.shape == x.shape:
            changed = x[None]
        tensors[name] = np.ascontiguousarray(changed)

    edit_weights(folder, change)
    with pytest.raises(BadInput, match=f"{name} has shape"):
        tpmm.load(folder)


@pytest.mark.parametrize(
    "field, value",
    [
        ("model_type", "gpt2"), ("model_type", None), ("new_field", 3),
        ("attention_bias", 1), ("hidden_act", "relu"), ("use_sliding_window", 1),
        ("layer_types", ["sliding_attention"]), ("quantization_config", {"bits": 4}),
        ("rope_parameters", {"rope_type": "yarn", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "llama3", "factor": 2.0}),
        ("vocab_size", None), ("hidden_size", "64"), ("num_hidden_layers", 0),
        ("num_hidden_layers", True), ("num_key_value_heads", 3), ("head_dim", 31),
        ("head_dim", "32"), ("num_key_value_heads", "2"), ("rms_norm_eps", "1e-6"),
        ("rms_norm_eps", -1.0), ("rope_parameters", "default"),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [1, "x"]), ("pad_token_id", 1.5),
        ("rope_parameters", {"rope_theta": "1e4", "rope_type": "default"}),
        ("tie_word_embeddings", "yes"), ("max_position_embeddings", 0),
        ("max_position_embeddings", "256"), ("hidden_activation", "gelu"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_understood_is_refused(copy, field, value):
    folder = copy("qwen3")
    edit_config(folder, **{field: value})
    with pytest.raises(BadInput) as error:
        tpmm.load(folder)
    name = "rope" if field == "rope_parameters" else field
    name = "hidden_act" if field == "hidden_activation" else name
    assert name in str(error.value) and "config.json" in str(error.value)


def test_all_problems_of_a_config_are_named_at_once():
    hf = {"model_type": "llama", "hidden_size": 8, "mystery": 1, "mlp_bias": 7}
    with pytest.raises(BadInput) as error:
        parse_config(hf, "somewhere/config.json")
    for part in ("somewhere/config.json", "mystery", "mlp_bias", "vocab_size"):
        assert part in str(error.value)


# What transformers 5.23 takes an absent field for; tests/parity compares all of them.
ABSENT = {
    "gemma": (256, 8192, 2, (1,)),
    "gemma2": (256, 8192, 2, (1,)),
    "gemma3_text": (256, 131_072, 2, (1,)),
    "llama": (8, 2048, 1, (2,)),
    "mistral": (8, 131_072, 1, (2,)),
    "mixtral": (8, 131_072, 1, (2,)),
    "qwen2": (8, 32_768, None, ()),
    "qwen3": (128, 32_768, None, ()),
    "qwen3_moe": (8, 32_768, None, ()),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_fields_have_the_familys_defaults(family):
    hf = {
        "model_type": family, "hidden_size": 32, "intermediate_size": 8,
        "num_attention_heads": 4, "num_hidden_layers": 12, "vocab_size": 9,
        "num_key_value_heads": 2,
    }  # fmt: skip
    c = parse_config(hf, "config.json")
    assert c.tie_embeddings == family.startswith("gemma")
    assert (c.head_dim, c.max_positions, c.bos_id, c.eos_ids) == ABSENT[family]
    assert c.norm_eps == (1e-5 if family == "mixtral" else 1e-6)
    far = ("gemma3_text", "mixtral")
    assert c.rope.theta == (1e6 if family in far else 1e4)
    experts = {
        "mixtral": ExpertsConfig(count=8, top_k=2),
        "qwen3_moe": ExpertsConfig(count=128, top_k=8, renormalise=False),
    }
    assert c.experts == experts.get(family)
    assert c.mlp_width == (768 if family == "qwen3_moe" else 8)
    assert c.qkv_bias == (family == "qwen2") and not c.output_bias and not c.mlp_bias
    windows = {
        "gemma2": (4096, (True, False) * 6),
        "gemma3_text": (4096, ((True,) * 5 + (False,)) * 2),
        "mistral": (4096, (True,) * 12),
    }
    assert (c.window, c.windowed_layers) == windows.get(family, (None, ()))
    caps = (50.0, 30.0) if family == "gemma2" else (None, None)
    assert (c.attention_softcap, c.final_softcap) == caps


@pytest.mark.parametrize("name", SIZES)
def test_configs_survive_being_written(name):
    config = SIZES[name]
    hf = json.loads(json.dumps(write_config(config, "float32")))
    assert parse_config(hf, "config.json") == config


def test_scaled_rope_and_several_eos_ids_survive():
    config = make_config(
        "llama", vocab_size=9, width=8, mlp_width=3, num_layers=1, num_heads=2,
        num_kv_heads=1, eos_ids=(1, 4), tie_embeddings=True,
        rope=RopeConfig(
            theta=5e5, scaling="llama3", factor=8.0, original_max_positions=32
        ),
    )  # fmt: skip
    assert parse_config(write_config(config, "float32"), "config.json") == config


def test_generation_config_adds_eos_ids(copy):
    folder = copy()
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 1]}')
    model = tpmm.load(folder)
    assert model.config.eos_ids == (1, 7)
    tpmm.save(model, folder / "out")
    assert tpmm.load(folder / "out").config.eos_ids == (1, 7)


def test_what_is_missing_is_named(copy, tmp_path):
    with pytest.raises(BadInput, match="nowhere"):
        tpmm.load(tmp_path / "nowhere")
    folder = copy()
    (folder / "config.json").rename(folder / "other.json")
    with pytest.raises(BadInput, match=r"config\.json"):
        tpmm.load(folder)
    (folder / "other.json").rename(folder / "config.json")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"model\.safetensors.*pytorch_model\.bin"):
        tpmm.load(folder)


@pytest.mark.parametrize(
    "text, wanted", [("{", "JSON"), ("[]", "object"), ('{"a": 1}', "model_type")]
)
def test_a_broken_config_is_named(copy, text, wanted):
    folder = copy()
    (folder / "config.json").write_text(text)
    with pytest.raises(BadInput, match=wanted) as error:
        tpmm.load(folder)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize("keep", [0, 4, 60, -3])
def test_a_truncated_file_is_named(copy, keep):
    path = copy() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadInput, match=r"model\.safetensors"):
        tpmm.load(path.parent)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.pop("weight_map"),
        lambda index: index.update(weight_map=[1, 2]),
        lambda index: index["weight_map"].update({NORM: "gone.safetensors"}),
        lambda index: index["weight_map"].update({NORM: 7}),
        lambda index: index["weight_map"].update({NORM: "../model.safetensors"}),
        lambda index: index["weight_map"].update(
            {NORM: index["weight_map"]["model.embed_tokens.weight"]}
        ),
    ],
    ids=["no map", "a list", "no such file", "a number", "outside", "wrong file"],
)
def test_a_broken_index_is_refused(fixtures, copy, change):
    folder = copy("gemma")
    model = tpmm.load(folder)
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    write_params(model.params, model.config, folder, max_shard_bytes=50_000)
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(BadInput):
        tpmm.load(folder)


def test_one_file_goes_before_an_index_that_was_left_behind(copy):
    folder = copy("gemma")
    model = tpmm.load(folder)
    half = jax.tree.map(lambda x: x / 2, model.params)
    one = (folder / "model.safetensors").read_bytes()
    write_params(half, model.config, folder, max_shard_bytes=50_000)
    assert (folder / INDEX).exists()
    (folder / "model.safetensors").write_bytes(one)
    assert bits(tpmm.load(folder).params) == bits(model.params)


def test_sampling_fields_of_older_transformers_change_nothing(copy):
    folder = copy("llama")
    before = tpmm.load(folder).config
    edit_config(folder, temperature=0.6, do_sample=True, tokenizer_class="X")
    assert tpmm.load(folder).config == before


def test_save_refuses_a_directory_that_holds_something(fixtures, tmp_path):
    model = tpmm.load(fixtures / "llama")
    (tmp_path / "empty").mkdir()
    tpmm.save(model, tmp_path / "empty")
    with pytest.raises(BadInput, match="not empty"):
        tpmm.save(model, tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="file"):
        tpmm.save(model, tmp_path / "file")


def test_a_save_that_fails_leaves_nothing(fixtures, tmp_path, monkeypatch):
    model = tpmm.load(fixtures / "llama")
    from tpmm_jax.weights import saving

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write_params", full)
    with pytest.raises(OSError):
        tpmm.save(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float16", "int8", "nonsense", jnp.float64])
def test_other_dtypes_are_refused(fixtures, dtype):
    with pytest.raises(BadInput, match="float32 or bfloat16"):
        tpmm.load(fixtures / "llama", dtype=dtype)


def test_a_revision_is_for_the_hub_only(fixtures):
    with pytest.raises(BadInput, match="revision"):
        tpmm.load(fixtures / "llama", revision="main")


def test_merge_of_models_and_paths(fixtures, tmp_path):
    a = tpmm.load(fixtures / "llama")
    b = tpmm.Model(a.decoder, jax.tree.map(lambda x: x + 1e-3, a.params))
    tpmm.save(b, tmp_path / "b")
    merged = tpmm.merge([a, str(tmp_path / "b")], [0.25, 0.75])
    for x, y in zip(jax.tree.leaves(merged.params), jax.tree.leaves(a.params)):
        np.testing.assert_allclose(x, np.asarray(y) + 0.75e-3, rtol=2e-7, atol=2e-9)
    assert bits(tpmm.merge([a, b], [0.0, 1.0]).params) == bits(b.params)
    other = tpmm.load(fixtures / "qwen3")
    for models, weights, wanted in (
        ([], [], "0 models"),
        ([a], [0.5, 0.5], "1 models and 2 weights"),
        ([a, b], [0.5, float("nan")], "finite"),
        ([a, other], [0.5, 0.5], "architecture"),
    ):
        with pytest.raises(BadInput, match=wanted):
            tpmm.merge(models, weights)


def test_reading_holds_no_second_copy_of_the_parameters(fixtures):
    """Each leaf is asked for once a shard: no tensor is read for other leaves."""
    source = SafetensorsDirectory(fixtures / "gemma")
    asked = []
    read = source.tensor
    source.tensor = lambda name: asked.append(name) or read(name)
    hf = json.loads((fixtures / "gemma" / "config.json").read_text())
    read_params(source, Decoder(parse_config(hf, "config.json")), "float32")
    assert sorted(asked) == sorted(source.names())


def test_a_tied_head_that_differs_from_the_embedding_is_refused(copy):
    """transformers would not tie them: to drop the head changes every logit."""
    folder = copy("gemma")

    def add(tensors):
        head = tensors["model.embed_tokens.weight"].copy()
        head[-1, -1] += 1
        tensors["lm_head.weight"] = head

    edit_weights(folder, add)
    with pytest.raises(BadInput, match=r"lm_head\.weight that differs.*tie_word"):
        tpmm.load(folder)
    edit_config(folder, tie_word_embeddings=False)
    assert "head" in tpmm.load(folder).params


def test_weights_of_eight_bits_are_refused(copy):
    """numpy has no such dtype, and safetensors says so with an AttributeError."""
    folder = copy()

    def quantise(tensors):
        tensors[NORM] = tensors[NORM].astype(jnp.float8_e4m3fn)

    edit_weights(folder, quantise)
    with pytest.raises(BadInput, match=f"{NORM} holds F8_E4M3; wanted float32"):
        tpmm.load(folder)
