"""Batches of one size taken from a set of pairs, which ``batches.collate`` made."""

from collections.abc import Iterable

import numpy as np

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


def take(table: Table, places: np.ndarray, size: int) -> Table:
    """Returns the rows at ``places``, repeated up to ``size`` with weight 0."""
    filled = np.resize(places, size)
    batch = {name: x[filled] for name, x in table.items()}
    batch["weight_B"] = batch["weight_B"] * (np.arange(size) < len(places))
    return batch
