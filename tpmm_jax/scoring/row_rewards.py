"""Rewards of rows of token ids, batch by batch, each row read once."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from tpmm_jax.axes import Params
from tpmm_jax.mesh import fetch, fill, put_batch
from tpmm_jax.models import Adapted, Decoder
from tpmm_jax.steps import rewards_and_routing_step, rewards_step

# The shortest length in tokens that rows are padded to; the others are 1.5, 2, 3, 4, 6
# ... times it, so that few programs are compiled.
SHORTEST = 32


def row_rewards(
    decoder: Decoder,
    params: Params | Adapted,
    rows: Sequence[Sequence[int]],
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
    routing: Callable[[Mapping[str, Any]], None] | None = None,
) -> Float64[np.ndarray, " M"]:
    """Returns the reward of each row.

    What a row is padded to depends on the row alone, so that the same program reads it
    whatever else is rated. Equal rows are read once.

    Args:
      rows: M rows of token ids, one or more each, within the model's positions.
      batch_size: rows that are read at once.
      advance: called with the number of rows that were done.
      routing: of a mixture: called with each batch's sums of what its routers report,
        in which equal rows count each; see ``steps.rewards_and_routing_step``.
    """
    places: dict[bytes, list[int]] = {}
    for place, ids in enumerate(rows):
        places.setdefault(row_key(ids), []).append(place)
    groups: dict[int, list[list[int]]] = {}
    for some in places.values():
        length = padded_length(len(rows[some[0]]), decoder.config.max_positions)
        groups.setdefault(length, []).append(some)
    found = np.empty(len(rows), np.float64)
    filled = fill(decoder.mesh, batch_size)
    for length, group in sorted(groups.items()):
        for at in range(0, len(group), batch_size):
            batch = group[at : at + batch_size]
            arrays = _pad([rows[some[0]] for some in batch], filled, length)
            if routing is None:
                put = put_batch(arrays, decoder.mesh)
                rewards_B = rewards_step(decoder, params, *put)
            else:
                count_B = np.zeros(filled, np.float32)
                count_B[: len(batch)] = [len(some) for some in batch]
                put = put_batch((*arrays, count_B), decoder.mesh)
                rewards_B, sums = rewards_and_routing_step(decoder, params, *put)
                routing(sums)
            for some, reward in zip(batch, fetch(rewards_B).astype(np.float64)):
                found[some] = reward
            advance(sum(map(len, batch)))
    return found


def padded_length(length: int, limit: int) -> int:
    """Returns the tokens that a row of ``length`` tokens is padded to.

    >>> [padded_length(n, 100) for n in (1, 32, 33, 49, 97)]
    [32, 32, 48, 64, 100]
    """
    size = SHORTEST
    while size < length:
        # 32, 48, 64, 96, 128 ...: a power of two, and half as much again.
        size = size // 2 * 3 if size & (size - 1) == 0 else size // 3 * 4
    return min(size, limit)


def row_key(ids: Sequence[int]) -> bytes:
    """Returns a digest of a row's ids."""
    return hashlib.blake2b(np.asarray(ids, np.int32).tobytes(), digest_size=16).digest()


def _pad(
    rows: Sequence[Sequence[int]], size: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and mask [size, length], filled with the last row."""
    tokens_BT = np.zeros((size, length), np.int32)
    mask_BT = np.zeros((size, length), np.int32)
    for b in range(size):
        ids = rows[min(b, len(rows) - 1)]
        tokens_BT[b, : len(ids)] = ids
        mask_BT[b, : len(ids)] = 1
    return tokens_BT, mask_BT
