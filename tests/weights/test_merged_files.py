"""Merging files block by block: weighted_sum's numbers, digests and ratios."""

import json

import command_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tpmm_jax as tpmm
from tpmm_jax.errors import BadInput
from tpmm_jax.merging import signal_to_rounding, weighted_sum
from tpmm_jax.models import Decoder
from tpmm_jax.models.families import make_config
from tpmm_jax.store import tree_digest
from tpmm_jax.weights import merged_files
from tpmm_jax.weights.huggingface import SafetensorsDirectory, read_params
from tpmm_jax.weights.merged_files import merge_files
from tpmm_jax.weights.writing import write_tensors

SIZES = dict(
    vocab_size=96, width=24, mlp_width=40, num_layers=3, num_heads=4, num_kv_heads=2,
    head_dim=8,
)  # fmt: skip
FAMILIES = ("gemma2", "qwen2", "mixtral", "llama")


def decoder_of(family, **changes):
    return Decoder(make_config(family, **SIZES | changes))


def write_models(decoder, folder, dtypes, max_shard_bytes=2**20):
    """Near one another, as checkpoints of one run are."""
    first, paths = decoder.init(jax.random.key(0)), []
    for k, dtype in enumerate(dtypes):
        params = command_runs.moved(first, k, 1e-3) if k else first
        paths.append(folder / str(k))
        model = tpmm.Model(decoder, params)
        tpmm.save(model, paths[-1], dtype=dtype, max_shard_bytes=max_shard_bytes)
    return [SafetensorsDirectory(path) for path in paths]


def bits(x):
    return np.asarray(x).view(np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_merge_as_trees_do(tmp_path, monkeypatch, family, dtype):
    # Blocks of fewer rows than a tensor has, and the last of fewer still.
    monkeypatch.setattr(merged_files, "SMALL", 64)
    monkeypatch.setattr(merged_files, "LARGE", 7 * 24)
    decoder = decoder_of(family)
    sources = write_models(decoder, tmp_path, ["float32", "bfloat16", "float32"])
    weights = [0.2, 0.5, 0.4]
    models = [read_params(source, decoder, "float32") for source in sources]
    out = tmp_path / "out"
    out.mkdir()
    found = merge_files(sources, weights, decoder, out, dtype)
    merged, ratio = weighted_sum(models, weights)
    assert found.digests == [tree_digest(model) for model in models]
    assert found.digest == tree_digest(merged)
    half = signal_to_rounding(merged, models[0], "bfloat16")
    assert found.ratios == pytest.approx({"float32": ratio, "bfloat16": half}, rel=1e-5)
    stored = read_params(SafetensorsDirectory(out), decoder, dtype)
    wanted = jax.tree.map(lambda x: x.astype(dtype), merged)
    assert all(
        np.array_equal(bits(a), bits(b))
        for a, b in zip(jax.tree.leaves(stored), jax.tree.leaves(wanted), strict=True)
    )


@pytest.mark.parametrize("k", range(3))
def test_a_one_hot_merge_copies_its_file(tmp_path, k):
    decoder = decoder_of("llama")
    sources = write_models(decoder, tmp_path, ["float32"] * 3)
    out = tmp_path / "out"
    out.mkdir()
    found = merge_files(
        sources, [float(k == j) for j in range(3)], decoder, out, "float32"
    )
    assert found.ratios["float32"] == np.inf and found.digest == found.digests[k]
    name = "model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / str(k) / name).read_bytes()


def test_a_weight_that_is_not_finite_is_named(tmp_path):
    decoder = decoder_of("llama")
    sources = write_models(decoder, tmp_path, ["float32"] * 2)
    file = tmp_path / "1" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 4] = np.inf
    save_file(tensors, file)
    with pytest.raises(BadInput, match=f"{name} of .*/1 has weights that are NaN"):
        sources = [sources[0], SafetensorsDirectory(tmp_path / "1")]
        merge_files(sources, [0.5, 0.5], decoder, tmp_path, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_file_is_what_safetensors_writes(tmp_path, dtype):
    rng = np.random.default_rng(0)
    shapes = {"b.weight": (5, 3), "a.weight": (7,), "B": (2, 2, 2)}
    tensors = {
        name: np.asarray(rng.normal(size=shape), jnp.dtype(dtype))
        for name, shape in shapes.items()
    }
    kinds = {name: (x.dtype, x.shape) for name, x in tensors.items()}
    write_tensors(tmp_path, kinds, lambda name: [tensors[name][:1], tensors[name][1:]])
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    ours = (tmp_path / "model.safetensors").read_bytes()
    assert ours == (tmp_path / "theirs").read_bytes()


def test_files_are_filled_in_turn_and_listed(tmp_path):
    tensors = {name: np.full((2, 4), k, np.float32) for k, name in enumerate("cab")}
    kinds = {name: (x.dtype, x.shape) for name, x in tensors.items()}
    write_tensors(tmp_path, kinds, lambda name: [tensors[name]], max_shard_bytes=64)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    assert index["metadata"] == {"total_size": 96}
    assert index["weight_map"] == {"c": files[0], "a": files[0], "b": files[1]}
    for name, file in index["weight_map"].items():
        assert np.array_equal(load_file(tmp_path / file)[name], tensors[name])
