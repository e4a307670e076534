"""Batches taken from a set of pairs, which ``batches.collate`` made, and their lengths.

Every batch has one size, and one of a few lengths, so that few programs are compiled.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tpmm_jax.data.records import PairRow

# Lengths are padded to multiples of this, so that few shapes are compiled.
LENGTH_STEP = 32
# No length is shorter: a further program takes longer to compile than it saves.
SHORTEST = 128

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


def even_lengths(longest: int, most: int) -> tuple[int, ...]:
    """Returns lengths for rows that are not there yet, ascending to ``longest``.

    >>> even_lengths(1000, 4)
    (256, 512, 768, 1000)
    >>> even_lengths(96, 4)
    (96,)

    Args:
      longest: as ``round_up`` gives it.
      most: how many lengths at most.
    """
    parts = (round_up(-(-longest * k // most), longest) for k in range(1, most))
    return (*sorted({n for n in parts if SHORTEST <= n < longest}), longest)


def best_lengths(
    lengths: Sequence[int] | np.ndarray, longest: int, most: int
) -> tuple[int, ...]:
    """Returns the lengths that pad given rows least, ascending to ``longest``.

    Args:
      lengths: of the rows, tokens.
      longest, most: see ``even_lengths``; no row is longer.
    """
    each = np.maximum(lengths, min(SHORTEST, longest))
    size, count = np.unique(
        [*(round_up(int(n), longest) for n in each), longest], return_counts=True
    )
    # tokens[i]: of the rows up to size[i], padded to lengths of which it is the last.
    rows = np.cumsum(count)
    tokens, chosen = rows * size, [[int(n)] for n in size]
    for _ in range(1, most):
        ends = [
            np.append(tokens[i], tokens[:i] + (rows[i] - rows[:i]) * size[i])
            for i in range(len(size))
        ]
        best = [int(np.argmin(some)) for some in ends]
        chosen = [
            chosen[i] if at == 0 else [*chosen[at - 1], int(size[i])]
            for i, at in enumerate(best)
        ]
        tokens = np.asarray([some[at] for some, at in zip(ends, best)])
    return tuple(chosen[-1])


def row_lengths(table: Table) -> np.ndarray:
    """Returns the tokens of each row's longer side, [B]."""
    return table["mask_BNT"].sum(axis=-1).max(axis=-1)


def fitting_lengths(length_B: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Returns, for each row, the least of ``lengths`` that holds it."""
    return np.asarray(lengths)[np.searchsorted(lengths, length_B)]


def same_length(
    length_B: np.ndarray, lengths: Sequence[int], size: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (places, length) of ``size`` rows at most that are padded to one length.

    It depends on the row alone: what else is read does not change its numbers.
    """
    padded_B = fitting_lengths(length_B, lengths)
    for length in lengths:
        places = np.flatnonzero(padded_B == length)
        for start in range(0, len(places), size):
            yield places[start : start + size], length


def take(
    table: Table, places: np.ndarray, size: int, lengths: Sequence[int] = ()
) -> Table:
    """Returns the rows at ``places``, repeated up to ``size`` with weight 0.

    Args:
      lengths: the least of these that holds them is what they are cut to; none: they
        stay as long as the table's.
    """
    filled, end = np.resize(places, size), None
    if lengths:
        length_B = row_lengths({"mask_BNT": table["mask_BNT"][places]})
        end = int(fitting_lengths(length_B, lengths).max())
    batch = {
        name: x[filled, ..., :end] if name.endswith("T") else x[filled]
        for name, x in table.items()
    }
    batch["weight_B"] = batch["weight_B"] * (np.arange(size) < len(places))
    return batch
