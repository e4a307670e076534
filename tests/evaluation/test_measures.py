"""Formulas, data without spread, and what may not change a number."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from tpmm_jax.data.records import Rollout
from tpmm_jax.evaluation import (
    MAX_CUT,
    cut_warning,
    distinct,
    judged_wins,
    mean_interval,
    measure,
    paired_interval,
    rate_interval,
    wins,
)


def test_the_same_data_give_the_same_interval() -> None:
    values_BR = np.random.default_rng(0).normal(size=(67, 3))
    assert mean_interval(values_BR) == mean_interval(values_BR.copy())


def test_the_bootstrap_is_students_on_normal_data() -> None:
    values_BR = np.random.default_rng(1).normal(size=(997, 1))
    found = mean_interval(values_BR)
    error = scipy.stats.sem(values_BR[:, 0])
    half = scipy.stats.t.ppf(0.975, 996) * error
    assert found.mean == values_BR.mean()
    np.testing.assert_allclose(
        [found.low, found.high],
        [found.mean - half, found.mean + half],
        atol=0.12 * error,
    )
    more = mean_interval(np.concatenate([values_BR, values_BR]))
    half = scipy.stats.t.ppf(0.975, 1993) * scipy.stats.sem(np.tile(values_BR, (2, 1)))
    np.testing.assert_allclose(more.high, more.mean + half[0], rtol=1e-12)


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_intervals_scale_and_shift_with_the_data(size: float) -> None:
    values_BR = np.random.default_rng(2).exponential(size=(53, 2))
    one, other = mean_interval(values_BR), mean_interval(size * (values_BR + 2))
    np.testing.assert_allclose(other, size * (np.array(one) + 2), rtol=1e-9)
    mirrored = mean_interval(-values_BR)
    np.testing.assert_allclose([-mirrored.high, -mirrored.low], one[1:], rtol=1e-9)


def test_samples_of_one_prompt_are_one_observation() -> None:
    column_BR = np.random.default_rng(3).normal(size=(31, 1))
    many_BR = np.repeat(column_BR, 5, axis=1)
    np.testing.assert_allclose(mean_interval(many_BR), mean_interval(column_BR))
    rates_BR = np.float64(column_BR > 0)
    np.testing.assert_allclose(
        rate_interval(np.repeat(rates_BR, 5, axis=1)), rate_interval(rates_BR)
    )


@pytest.mark.parametrize("values", [[[3.0, 4.0]], [[1.0], [1.0], [1.0]], [[0.1 + 0.2]]])
def test_a_mean_without_spread_is_not_known(values: list[list[float]]) -> None:
    found = mean_interval(np.asarray(values))
    assert found.low == -math.inf and found.high == math.inf
    assert not found.excludes_0


def test_three_odd_prompts_leave_a_side_open() -> None:
    values_BR = np.zeros((64, 1))
    values_BR[:2] = 1
    found = mean_interval(values_BR)
    assert found.high == math.inf and found.low < found.mean


@pytest.mark.parametrize("B", [2, 17, 64])
def test_all_won_and_all_lost_are_clopper_pearsons(B: int) -> None:
    exact = scipy.stats.binomtest(B, B).proportion_ci(0.95, method="exact")
    found = rate_interval(np.ones((B, 1)))
    np.testing.assert_allclose(found, [1, exact.low, 1], rtol=1e-9)
    found = rate_interval(np.zeros((B, 3)))
    np.testing.assert_allclose(found, [0, 0, 1 - exact.low], rtol=1e-9)
    tied = rate_interval(np.full((B, 1), 0.5))
    np.testing.assert_allclose(tied.low, 0.5 * exact.low, rtol=1e-9)


def test_a_rate_of_one_prompt_says_nothing() -> None:
    assert rate_interval(np.ones((1, 4))) == (1.0, 0.0, 1.0)


def test_wilson_on_plain_wins() -> None:
    values_BR = np.float64(np.arange(400) < 120)[:, None]
    exact = scipy.stats.binomtest(120, 400).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(
        rate_interval(values_BR)[1:], [exact.low, exact.high], atol=1e-3
    )


def test_few_losses_are_clopper_pearsons() -> None:
    values_BR = np.float64(np.arange(400) < 398)[:, None]
    exact = scipy.stats.binomtest(398, 400).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(
        rate_interval(values_BR)[1:], [exact.low, exact.high], atol=1e-3
    )


def test_wins_by_hand() -> None:
    ours, theirs = (
        np.array([[1.0, 2.0], [0.0, 5.0]]),
        np.array([[1.0, 1.0], [3.0, 4.0]]),
    )
    np.testing.assert_array_equal(wins(ours, theirs), [[0.5, 1.0], [0.0, 1.0]])
    np.testing.assert_array_equal(
        wins(ours, theirs) + wins(theirs, ours), np.ones((2, 2))
    )


def test_a_judge_that_likes_the_first_place_gives_a_tie() -> None:
    ones = np.ones((3, 2))
    np.testing.assert_array_equal(judged_wins(ones, ones), ones / 2)
    np.testing.assert_array_equal(judged_wins(ones, 0 * ones), ones)


def test_paired_intervals_are_narrow_where_prompts_differ_much() -> None:
    rng = np.random.default_rng(4)
    prompt = 10 * rng.normal(size=(64, 1))
    ours, theirs = (
        prompt + 1 + rng.normal(size=(64, 2)),
        prompt + rng.normal(size=(64, 3)),
    )
    found = paired_interval(ours, theirs)
    assert found.low > 0.5 and found.high < 1.5 and found.excludes_0


def test_distinct_by_hand() -> None:
    assert distinct(["a b a", "a b"], 1) == 2 / 5
    assert distinct(["a b a", "a b"], 2) == 2 / 3
    assert distinct(["a", ""], 2) == 0.0


def answers(seed: int) -> list[Rollout]:
    rng = np.random.default_rng(seed)
    return [
        Rollout(
            prompt="p",
            responses=["a b", "c"],
            rewards=rng.normal(size=2).tolist(),
            scores={"calm": rng.normal(size=2).tolist()},
            held_out=True,
            prompt_ids=[1],
            response_ids=[[1, 2], [3]],
        )
        for _ in range(9)
    ]


def test_the_keys_of_a_measure() -> None:
    won_BR = np.full((9, 2), 0.5)
    found = measure(
        answers(0),
        eos_ids=(3, 9),
        opponents={"theta_0": answers(1)},
        log_ratios={"theta_0": np.random.default_rng(2).normal(size=(9, 2))},
        judged={("careful", "theta_0"): won_BR},
    )
    bounded = ["kl/theta_0"]
    bounded += [f"{head}win/theta_0" for head in ("", "score/calm/", "judge/careful/")]
    wanted = {"length/mean", "length/cut", "distinct/1", "distinct/2"}
    wanted |= {f"{n}{b}" for n in bounded for b in ("", "/low", "/high")}
    wanted |= {
        f"{n}/{b}" for n in ("reward", "score/calm") for b in ("mean", "low", "high")
    }
    assert set(found) == wanted
    assert found["length/mean"] == 1.5
    spread = [replace(row, spread=[0.5, 1.5]) for row in answers(0)]
    assert measure(spread, eos_ids=(3,))["reward/spread"] == 1.0
    # Of every two answers [1, 2] has no end.
    assert found["length/cut"] == 0.5


def test_cut_answers_are_warned_of_above_a_fifth() -> None:
    assert cut_warning({"iteration 1": MAX_CUT}, "--max-new-tokens", 8) == ""
    text = cut_warning({"theta_0": 0.214, "theta_1": 0.1, "theta_2": 1.0}, "N", 8)
    assert "at 8 tokens: theta_0: 21 %; theta_2: 100 %. Above 20 %" in text
    assert text.endswith("raise N")
