"""Few lengths for rows of many: which they are, and who shares a batch."""

import itertools

import numpy as np
import pytest

from tpmm_jax.data.batches import collate
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.table import (
    SHORTEST,
    best_lengths,
    even_lengths,
    fitting_lengths,
    round_up,
    row_lengths,
    same_length,
    take,
)
from tpmm_jax.loop.task import WINDOW, BatchOrder


def padded(lengths: list[int], buckets: tuple[int, ...]) -> int:
    return int(fitting_lengths(np.asarray(lengths), buckets).sum())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_the_best_lengths_pad_least_of_all(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = [int(n) for n in np.clip(rng.lognormal(5, 0.7, 60), 5, 500)]
    found = best_lengths(lengths, 512, most)
    assert found == tuple(sorted(set(found))) and found[-1] == 512
    assert len(found) <= most and found[0] >= SHORTEST
    sizes = sorted({max(SHORTEST, round_up(n, 512)) for n in lengths} - {512})
    every = (
        (*some, 512)
        for count in range(most)
        for some in itertools.combinations(sizes, count)
    )
    assert padded(lengths, found) == min(padded(lengths, some) for some in every)


def test_lengths_end_at_the_longest() -> None:
    assert best_lengths([40, 50], 64, 4) == (64,)
    assert best_lengths([40, 50], 200, 4) == (128, 200), "room for answers to come"
    assert best_lengths([300] * 9, 300, 4) == (300,)
    assert even_lengths(64, 4) == (64,)
    assert even_lengths(1024, 4) == (256, 512, 768, 1024)
    assert even_lengths(1024, 1) == (1024,)
    assert even_lengths(300, 4) == (160, 256, 300)


def pairs(lengths: list[int]) -> list[PairRow]:
    return [PairRow([1] * (n // 2), [2] * (n - n // 2), [3]) for n in lengths]


def test_a_batch_is_cut_to_the_least_length_that_holds_it() -> None:
    lengths = [4, 9, 16, 3]
    table = collate(pairs(lengths), length=16, pad_id=7)
    np.testing.assert_array_equal(row_lengths(table), lengths)
    for places, length in (([0, 3], 4), ([0, 1], 12), ([2], 16)):
        batch = take(table, np.asarray(places), 3, (4, 12, 16))
        whole = take(table, np.asarray(places), 3)
        for name, x in batch.items():
            if name.endswith("T"):
                assert x.shape == (3, 2, length), name
                np.testing.assert_array_equal(x, whole[name][..., :length])
                assert not whole["mask_BNT"][..., length:].any()
            else:
                np.testing.assert_array_equal(x, whole[name])


def test_rows_of_one_length_are_read_together() -> None:
    lengths = np.asarray([5, 90, 17, 4, 60, 3, 16])
    found = [(list(p), n) for p, n in same_length(lengths, (16, 64, 96), 2)]
    assert found == [([0, 3], 16), ([5, 6], 16), ([2, 4], 64), ([1], 96)]
    alone = [(list(p), n) for p, n in same_length(lengths, (96,), 3)]
    assert alone == [([0, 1, 2], 96), ([3, 4, 5], 96), ([6], 96)]


def test_like_lengths_share_a_batch_in_an_order_of_the_seed() -> None:
    rng = np.random.default_rng(5)
    length_P = np.clip(rng.lognormal(5, 1, 1003), 10, 1000).astype(int)
    buckets = best_lengths(length_P, 1000, 4)
    orders = {
        name: BatchOrder(len(length_P), 8, 2, 3, 1, lengths)
        for name, lengths in (("grouped", length_P), ("free", None))
    }
    tokens = dict.fromkeys(orders, 0)
    for name, order in orders.items():
        again = BatchOrder(len(length_P), 8, 2, 3, 1, order.length_P)
        for epoch in range(2):
            first = epoch * order.steps_per_epoch
            steps = range(first, first + order.steps_per_epoch)
            batches = [order.places(step) for step in steps]
            assert sorted(np.concatenate(batches)) == list(range(len(length_P)))
            assert [len(some) for some in batches] == [8] * 125 + [3]
            for step in (steps[0], steps[60], steps[-1]):
                np.testing.assert_array_equal(again.places(step), order.places(step))
            longest = np.asarray([length_P[some].max() for some in batches])
            sizes = [len(some) for some in batches]
            tokens[name] += int(fitting_lengths(longest, buckets) @ sizes)
        if name == "grouped":
            # The longest fail at once, if they do; the short batch is of any rows.
            assert length_P[order.places(0)].max() == length_P.max()
            short = length_P[order.places(125)], length_P[order.places(251)]
            assert min(some.mean() for some in short) < np.quantile(length_P, 0.9)
        one, two = order.places(0), order.places(order.steps_per_epoch)
        assert not np.array_equal(one, two), "epochs differ"
    real = 2 * int(length_P.sum())
    assert tokens["grouped"] < 1.5 * real < 3 * real < tokens["free"]
    # Short and long batches come in no order.
    order = orders["grouped"]
    means = [length_P[order.places(step)].mean() for step in range(WINDOW)]
    assert abs(np.corrcoef(means, range(WINDOW))[0, 1]) < 0.4


def test_without_lengths_the_order_is_a_shuffle() -> None:
    order = BatchOrder(10, 4, 2, 6, 2)
    shuffled = np.random.default_rng([6, 2, 2, 1]).permutation(10)
    found = [order.places(step) for step in range(3, 6)]
    np.testing.assert_array_equal(np.concatenate(found), shuffled)
