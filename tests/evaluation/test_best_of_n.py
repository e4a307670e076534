"""Best of n from one pool: against all subsets, closed forms, and known curves."""

import itertools

import numpy as np
import pytest

from tpmm_jax.errors import BadInput
from tpmm_jax.evaluation import (
    best_of,
    curve_sizes,
    find_turn,
    joint_intervals,
    kl_bound,
    mean_interval,
    pick_chances,
)


def over_all_subsets(proxy: np.ndarray, gold: np.ndarray, n: int) -> float:
    """The mean gold of the best by the proxy; of equal ones, the mean of theirs."""
    picked = []
    for subset in itertools.combinations(range(len(proxy)), n):
        places = np.array(subset)
        best = places[proxy[places] == proxy[places].max()]
        picked.append(gold[best].mean())
    return float(np.mean(picked))


@pytest.mark.parametrize("values", [2, 3, 100])
def test_it_is_the_mean_over_all_subsets(values: int) -> None:
    """With few values nearly everything ties; with many nothing does."""
    rng = np.random.default_rng(values)
    proxy, gold = rng.integers(values, size=(5, 7)) / 3, rng.normal(size=(5, 7))
    sizes = range(1, 8)
    wanted = [[over_all_subsets(p, g, n) for n in sizes] for p, g in zip(proxy, gold)]
    np.testing.assert_allclose(best_of(proxy, gold, sizes), wanted, atol=1e-12)


def test_it_is_the_closed_form_for_large_pools() -> None:
    """The largest of n out of 1 ... N is n (N + 1) / (n + 1) on average."""
    N = 1024
    ranks = np.random.default_rng(0).permutation(N)[None] + 1.0
    sizes = [1, 2, 31, 512, 1023, 1024]
    wanted = [n * (N + 1) / (n + 1) for n in sizes]
    np.testing.assert_allclose(best_of(ranks, ranks, sizes)[0], wanted, rtol=1e-10)
    tied = np.random.default_rng(1).integers(5, size=(2, N)) * 1.0
    for n in sizes:
        np.testing.assert_allclose(pick_chances(tied, n).sum(axis=1), 1, rtol=1e-10)
    # A proxy that cannot tell answers apart picks one blindly.
    np.testing.assert_allclose(best_of(0 * ranks, ranks, [512]), (N + 1) / 2)


@pytest.mark.parametrize("n", [0, 5])
def test_n_beyond_the_pool_is_refused(n: int) -> None:
    with pytest.raises(BadInput, match="wanted 1 to 4"):
        pick_chances(np.zeros((1, 4)), n)


def test_the_bound_and_the_sizes() -> None:
    assert kl_bound(1) == 0
    np.testing.assert_allclose(kl_bound(64), np.log(64) - 63 / 64)
    for n in (1, 2, 3, 16, 17, 24, 64, 1000):
        sizes = curve_sizes(n)
        assert sizes[0] == 1 and sizes[-1] == n
        assert sizes == sorted(set(sizes))


def curves(kind: str, rng: np.random.Generator, B: int, sizes: list[int]) -> np.ndarray:
    """Gold by prompt and n, of a pool of 64 answers."""
    proxy, prompt = rng.normal(size=(B, 64)), rng.exponential(size=(B, 1))
    noise = 0.5 * rng.normal(size=proxy.shape)
    gold = {
        "flat": 0 * proxy,
        "rising": 0.5 * proxy,
        "exploited": proxy - 0.45 * np.maximum(proxy, 0) ** 2,
    }[kind]
    return best_of(proxy, prompt + gold + noise, sizes)


def test_where_gold_turns_down() -> None:
    sizes = curve_sizes(32)
    rng = np.random.default_rng(4)
    turn = find_turn(curves("exploited", rng, 100, sizes), sizes)
    assert turn.down and not turn.up
    # E of gold at the best of n: its true maximum is near n = 6.
    assert 4 <= turn.earliest <= turn.best <= turn.latest <= 10
    assert turn.fall.low < turn.fall.mean < turn.fall.high < 0
    turn = find_turn(curves("rising", rng, 100, sizes), sizes)
    assert turn.up and not turn.down and turn.half == 16


def test_one_prompt_or_no_spread_bounds_nothing() -> None:
    turn = find_turn(np.array([[1.0, 3.0, 2.0]]), [1, 2, 3])
    assert (turn.best, turn.down, turn.up) == (2, False, False)
    assert turn.fall.low == -np.inf and turn.fall.mean == -1
    same = joint_intervals(np.tile([0.0, 1.0], (9, 1)))
    assert [x.high for x in same] == [np.inf, np.inf]


def test_one_mean_has_its_own_interval() -> None:
    values = np.random.default_rng(5).exponential(size=(40, 1))
    assert joint_intervals(values) == [mean_interval(values)]


def test_many_prompts_have_intervals_of_the_normal() -> None:
    """Above intervals.MOST_RESAMPLED prompts; six means that hardly depend."""
    found = joint_intervals(np.random.default_rng(6).normal(size=(1_100, 6)))
    widths = [(x.high - x.low) / 2 * np.sqrt(1_100) for x in found]
    # The two-sided normal quantile of 0.95 ** (1 / 6) is 2.63.
    np.testing.assert_allclose(widths, 2.63, rtol=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("B", [48, 128])
def test_coverage(B: int) -> None:
    """Intervals over prompts hold the truth; a flat curve is not said to fall."""
    rng = np.random.default_rng([B, 9])
    sizes = [1, 4, 32]
    truth = curves("exploited", rng, 60_000, sizes).mean(axis=0)
    hits, repeats = np.zeros(3), 600
    for _ in range(repeats):
        values = curves("exploited", rng, B, sizes)
        found = [mean_interval(values[:, [s]]) for s in range(3)]
        hits += [x.low <= t <= x.high for x, t in zip(found, truth)]
    assert np.all((hits / repeats >= 0.925) & (hits / repeats <= 0.975))
    every = curve_sizes(32)
    flat = [find_turn(curves("flat", rng, B, every), every) for _ in range(300)]
    assert np.mean([turn.down for turn in flat]) <= 0.05
    assert np.mean([turn.up for turn in flat]) <= 0.05
