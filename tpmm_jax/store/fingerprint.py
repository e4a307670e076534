"""Two integers per leaf that show any single changed bit, wherever the leaf lies.

Orbax does not checksum what it stores: a flipped bit restores in silence. The sums
below are exact integer arithmetic over bit patterns, so they do not depend on the
mesh, on the order of summation, or on the number of devices. They find errors; they
are not a defence against an attacker.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped, UInt32

from tpmm_jax.errors import BadInput
from tpmm_jax.store.files import sha256


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """("path/to/leaf", leaf) of every leaf, in the order of jax.tree.leaves."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def odd_hash(
    index: UInt32[Array | np.ndarray, "..."],
) -> UInt32[Array | np.ndarray, "..."]:
    """An odd number for each index, from Murmur3's final mix."""
    mixed = index * np.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    # Odd, hence invertible mod 2^32: no single flipped bit is multiplied to zero.
    return (mixed ^ (mixed >> np.uint32(16))) | np.uint32(1)


def _index(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """The global row-major index of each number, mod 2^32."""
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        iota = lax.broadcasted_iota(jnp.uint32, shape, axis)
        index = index + iota * np.uint32(stride & 0xFFFFFFFF)
        stride *= shape[axis]
    return index


def _bits(x: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    """The bit patterns as uint32; eight-byte types get a trailing axis of two."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if x.dtype.itemsize >= 4:
        return lax.bitcast_convert_type(x, jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}[x.dtype.itemsize]
    return lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


@jax.jit
def _sums(x: Shaped[Array, "..."]) -> tuple[UInt32[Array, ""], UInt32[Array, ""]]:
    """(sum of bits, sum of bits * odd hash of the index), both mod 2^32."""
    bits = _bits(x)
    # One reduction over both: two separate sums made XLA's CPU backend write the
    # products to memory, twice the leaf's size.
    return lax.reduce(
        (bits, bits * odd_hash(_index(bits.shape))),
        (np.uint32(0), np.uint32(0)),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        tuple(range(bits.ndim)),
    )


def _as_array(name: str, leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    try:
        array = jnp.asarray(leaf)
    except (TypeError, ValueError) as error:
        raise BadInput(f"leaf {name}: {error}; wanted an array") from None
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise BadInput(f"leaf {name}: dtype {array.dtype} has no fingerprint")
    return array


def fingerprint(tree: Any) -> dict[str, list[int]]:
    """The fingerprint of every leaf of a tree.

    Args:
      tree: any tree of arrays (floats, integers, booleans, typed PRNG keys), sharded
        in any way.

    Returns:
      "path/to/leaf" -> [sum of the bit patterns, sum of the bit patterns times an odd
      hash of the global row-major index], both mod 2^32.

    Raises:
      BadInput: a leaf is not such an array; names it.
    """
    sums = {n: _sums(_as_array(n, leaf)) for n, leaf in named_leaves(tree)}
    return {name: [int(s) for s in pair] for name, pair in sums.items()}


def changed_leaf(
    tree: Any, saved: Mapping[str, list[int]]
) -> tuple[str, list[int]] | None:
    """The first leaf whose fingerprint is not the saved one, and what it is now.

    Args:
      tree: has every leaf that saved names.
      saved: what `fingerprint` gave.
    """
    found = fingerprint(tree)
    return next(((n, found[n]) for n, sums in saved.items() if found[n] != sums), None)


def layout(tree: Any) -> dict[str, list[Any]]:
    """ "path/to/leaf" -> [dtype name, shape as a list] of every leaf."""
    return {
        name: [str(leaf.dtype), [int(n) for n in leaf.shape]]
        for name, leaf in (
            (n, x if hasattr(x, "dtype") else jnp.asarray(x))
            for n, x in named_leaves(tree)
        )
    }


def digest(
    fingerprints: Mapping[str, Any], extra: Mapping[str, Any] | None = None
) -> str:
    """SHA-256 (hex) of the canonical JSON of fingerprints and `extra`.

    Args:
      fingerprints: what `fingerprint` gives.
      extra: whatever else the digest stands for; for a tree of arrays its `layout`
        (dtypes and shapes), as in `tree_digest`.
    """
    return sha256({"fingerprints": dict(fingerprints), "extra": dict(extra or {})})


def tree_digest(tree: Any) -> str:
    """The digest of a tree's values, dtypes and shapes; equal on every mesh."""
    return digest(fingerprint(tree), layout(tree))
