"""Pairs of a source as a run reads them."""

from typing import Any

from tpmm_jax.data.pairs import PairSet, read_pair_set
from tpmm_jax.data.problems import OnBadRows, Problems


def load_pairs(
    source: str, *, on_bad_rows: OnBadRows = "refuse", **options: Any
) -> PairSet:
    """Reads pairs; raises BadInput for rows that a run refuses."""
    problems = Problems(source, on_bad_rows=on_bad_rows)
    found = read_pair_set(source, problems, **options)
    problems.settle()
    return found
