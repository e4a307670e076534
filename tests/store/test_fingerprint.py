"""Fingerprints: the formula, every bit counts, no mesh matters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tpmm_jax.errors import BadInput
from tpmm_jax.store.fingerprint import digest, fingerprint, layout, tree_digest


def by_hand(bits: np.ndarray) -> list[int]:
    """The docstring's sums in NumPy, in Python integers where they overflow."""
    flat = bits.astype(np.uint64).ravel()
    h = np.arange(flat.size, dtype=np.uint64) * 0x9E3779B1 % 2**32
    h = (h ^ (h >> 16)) * 0x85EBCA6B % 2**32
    h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
    h = (h ^ (h >> 16)) | 1
    return [int(flat.sum() % 2**32), int(sum(map(int, flat * h % 2**32)) % 2**32)]


@pytest.mark.parametrize(
    ("dtype", "unsigned"),
    [
        (jnp.float32, np.uint32),
        (jnp.bfloat16, np.uint16),
        (jnp.float16, np.uint16),
        (jnp.int32, np.uint32),
        (jnp.int8, np.uint8),
        (jnp.uint32, np.uint32),
    ],
)
def test_formula(dtype, unsigned):
    x = (100 * jax.random.normal(jax.random.key(0), (3, 5, 7))).astype(dtype)
    assert fingerprint({"x": x})["x"] == by_hand(np.asarray(x).view(unsigned))


def test_formula_of_booleans_scalars_empty_arrays_and_keys():
    key = jax.random.key(3)
    tree = {"b": jnp.array([True, False]), "s": 5, "e": jnp.zeros((0, 4)), "k": key}
    found = fingerprint(tree)
    assert found["b"] == by_hand(np.array([1, 0]))
    assert found["s"] == by_hand(np.array([5]))
    assert found["e"] == [0, 0]
    assert found["k"] == by_hand(np.asarray(jax.random.key_data(key)))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1), (8, 1, 1), (1, 2, 4)])
def test_equal_on_every_mesh(kind, sizes):
    x = jax.random.normal(jax.random.key(0), (3, 16, 8))
    mesh = jax.make_mesh(sizes, ("data", "fsdp", "tensor"), (kind,) * 3)
    spec = PartitionSpec(None, ("data", "fsdp"), "tensor")
    spread = jax.device_put(x, NamedSharding(mesh, spec))
    assert fingerprint({"x": spread}) == fingerprint({"x": x})
    with jax.set_mesh(mesh):
        assert tree_digest({"x": spread}) == tree_digest({"x": x})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_single_bit_changes_both_sums(dtype):
    x = np.asarray(jax.random.normal(jax.random.key(1), (13,)).astype(dtype))
    before = fingerprint({"x": jnp.asarray(x)})["x"]
    for bit in range(x.nbytes * 8):
        raw = bytearray(x.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        flipped = np.frombuffer(bytes(raw), x.dtype)
        after = fingerprint({"x": jnp.asarray(flipped)})["x"]
        assert after[0] != before[0] and after[1] != before[1], bit


def test_a_swap_of_two_values_is_seen():
    x, y = jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 1.0, 3.0])
    assert tree_digest({"x": x}) != tree_digest({"x": y})


def test_digest_tells_names_shapes_and_dtypes_apart():
    x = jnp.zeros((2, 3))
    variants = [{"x": x}, {"y": x}, {"x": x.T}, {"x": x.astype(jnp.bfloat16)}]
    assert len({tree_digest(v) for v in variants}) == 4
    assert tree_digest({"x": x}) == digest(fingerprint({"x": x}), layout({"x": x}))
    assert tree_digest({"a": {"b": x}, "c": x}) == tree_digest({"c": x, "a": {"b": x}})


def test_no_copy_of_a_leaf_is_made():
    from tpmm_jax.store.fingerprint import _sums

    x = jnp.ones((16, 256, 256))
    used = _sums.lower(x).compile().memory_analysis().temp_size_in_bytes
    assert used < 0.01 * x.nbytes


def test_what_has_no_fingerprint_is_named():
    with pytest.raises(BadInput, match="a/b"):
        fingerprint({"a": {"b": "text"}})
    with pytest.raises(BadInput, match="complex"):
        fingerprint({"c": jnp.ones(2, jnp.complex64)})
