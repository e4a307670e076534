"""Sets of pairs as arrays: lengths in few sizes."""

import pytest

from tpmm_jax.data.table import LENGTH_STEP, round_up


@pytest.mark.parametrize(
    "length, limit, wanted",
    [(1, 100, 32), (32, 100, 32), (33, 100, 64), (97, 100, 100), (100, 100, 100)],
)
def test_lengths_are_rounded_up_to_few_sizes(length, limit, wanted):
    assert LENGTH_STEP == 32 and round_up(length, limit) == wanted
