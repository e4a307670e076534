"""A set of pairs as host arrays, and batches of one size taken from it."""

from collections.abc import Iterable, Sequence

import numpy as np

from tpmm_jax.data.batches import collate
from tpmm_jax.data.records import PairRow

# Lengths are padded to multiples of this, so that few shapes are compiled.
LENGTH_STEP = 32

Table = dict[str, np.ndarray]


def pair_length(rows: Iterable[PairRow]) -> int:
    """Returns the tokens of the longest prompt with its longer completion."""
    return max(
        len(row.prompt_ids) + max(len(row.chosen_ids), len(row.rejected_ids))
        for row in rows
    )


def round_up(length: int, limit: int) -> int:
    """Returns the next multiple of LENGTH_STEP, at most ``limit``."""
    return max(length, min(-(-length // LENGTH_STEP) * LENGTH_STEP, limit))


def make_table(rows: Sequence[PairRow], *, length: int, pad_id: int) -> Table:
    """Returns the arrays of ``collate`` for all rows, each with weight 1."""
    return collate(rows, length=length, pad_id=pad_id)


def take(table: Table, places: np.ndarray, size: int) -> Table:
    """Returns the rows at ``places``, repeated up to ``size`` with weight 0."""
    filled = np.resize(places, size)
    batch = {name: x[filled] for name, x in table.items()}
    batch["weight_B"] = batch["weight_B"] * (np.arange(size) < len(places))
    return batch
