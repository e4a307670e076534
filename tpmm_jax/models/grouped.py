"""Products of rows with the matrices of their groups: x_i W_{group of i}.

Rows are sorted by group first. Accelerators take ``jax.lax.ragged_dot``. On a CPU that
multiplies every row with every matrix; there each group begins at a multiple of some
rows instead, a block, and a loop walks the blocks that hold rows.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tpmm_jax.models.layers import einsum

# Rows of a block on a CPU, at most: of 16 to 256 the fastest, or within 3 % of it, at
# widths 64 and 576, to train and to score (benchmarks/umm/cost.py blocks).
BLOCK = 64
# At least: where a token is decoded, groups are small.
_SMALLEST = 8


class Groups(NamedTuple):
    """Where rows lie once they are sorted by group.

    Attributes:
      place_A: the place of each row, int32; ``size`` where it is in no group.
      size_X: rows of each group, int32.
      owner_R: the group of each block, int32; None: no blocks, for ragged_dot.
      blocks: how many blocks hold rows, int32 scalar.
    """

    place_A: jax.Array
    size_X: jax.Array
    owner_R: jax.Array | None
    blocks: jax.Array


def sort_rows(group_A: jax.Array, count: int, *, blocks: bool) -> tuple[Groups, int]:
    """Returns where rows lie, and how many places there are.

    Args:
      group_A: of each row, int32; outside of [0, count): in no group.
      blocks: whether groups begin at multiples of a block.
    """
    rows = group_A.shape[0]
    group_A = jnp.where((group_A >= 0) & (group_A < count), group_A, count)
    order_A = jnp.argsort(group_A, stable=True)
    size_X = jnp.zeros(count, jnp.int32).at[group_A].add(1, mode="drop")
    first_X = jnp.cumsum(size_X) - size_X
    places, start_X = rows, first_X
    owner_R, used = None, jnp.int32(0)
    if blocks:
        block = _block_rows(rows, count)
        block_X = -(-size_X // block)
        end_X = jnp.cumsum(block_X)
        start_X = (end_X - block_X) * block
        number = -(-rows // block) + min(count, rows)
        places = number * block
        owner_R = jnp.searchsorted(end_X, jnp.arange(number), side="right")
        owner_R = jnp.minimum(owner_R, count - 1).astype(jnp.int32)
        used = end_X[-1].astype(jnp.int32)
    sorted_A = group_A[order_A]
    # Beyond the last group: start and first of any, the place is thrown away.
    at_A = jnp.minimum(sorted_A, count - 1)
    place_A = start_X[at_A] + jnp.arange(rows) - first_X[at_A]
    place_A = jnp.where(sorted_A < count, place_A, places).astype(jnp.int32)
    place_A = jnp.zeros_like(place_A).at[order_A].set(place_A, unique_indices=True)
    return Groups(place_A, size_X, owner_R, used), places


def _block_rows(rows: int, count: int) -> int:
    """Returns the rows of a block: no more than a group's even share needs."""
    block = _SMALLEST
    while block < BLOCK and block * count < rows:
        block *= 2
    return block


def grouped_dot(x: jax.Array, w_XIO: jax.Array, groups: Groups, dtype: Any) -> Any:
    """Returns x_i W_{group of i}, float32; places that hold no row are 0.

    Args:
      x: [places, I].
      w_XIO: a matrix for each group.
      dtype: of the products; they are summed in float32.
    """
    x, w_XIO = x.astype(dtype), w_XIO.astype(dtype)
    if groups.owner_R is not None:
        return _block_dot(x, w_XIO, groups.owner_R, groups.blocks)
    exact = jnp.dtype(dtype) == jnp.float32
    out = jax.lax.ragged_dot(
        x,
        w_XIO,
        groups.size_X,
        precision=jax.lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )
    held = jnp.arange(x.shape[0]) < jnp.sum(groups.size_X)
    return jnp.where(held[:, None], out, 0.0)


@functools.partial(jax.custom_vjp)
def _block_dot(
    x: jax.Array, w_XIO: jax.Array, owner_R: jax.Array, blocks: jax.Array
) -> jax.Array:
    block = x.shape[0] // owner_R.shape[0]

    def one(i: jax.Array, out: jax.Array) -> jax.Array:
        w = jax.lax.dynamic_index_in_dim(w_XIO, owner_R[i], keepdims=False)
        rows = jax.lax.dynamic_slice_in_dim(x, i * block, block)
        product = einsum("AI,IO->AO", rows, w, dtype=x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(out, product, i * block, axis=0)

    start = jnp.zeros((x.shape[0], w_XIO.shape[2]), jnp.float32)
    return jax.lax.fori_loop(0, blocks, one, start)


def _forward(x: jax.Array, w_XIO: jax.Array, owner_R: Any, blocks: Any) -> Any:
    return _block_dot(x, w_XIO, owner_R, blocks), (x, w_XIO, owner_R, blocks)


def _backward(kept: Any, out: jax.Array) -> Any:
    x, w_XIO, owner_R, blocks = kept
    out, block = out.astype(x.dtype), x.shape[0] // owner_R.shape[0]
    x_grad = _block_dot(out, jnp.swapaxes(w_XIO, 1, 2), owner_R, blocks)

    def one(i: jax.Array, grad_XIO: jax.Array) -> jax.Array:
        rows, gradient = (
            jax.lax.dynamic_slice_in_dim(y, i * block, block) for y in (x, out)
        )
        product = einsum("AI,AO->IO", rows, gradient, dtype=x.dtype)
        return grad_XIO.at[owner_R[i]].add(product)

    w_grad = jax.lax.fori_loop(0, blocks, one, jnp.zeros(w_XIO.shape, jnp.float32))
    return x_grad.astype(x.dtype), w_grad.astype(w_XIO.dtype), None, None


_block_dot.defvjp(_forward, _backward)
