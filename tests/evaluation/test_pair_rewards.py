"""Measures of rewards against values worked out by hand."""

import math

import numpy as np
import pytest

from tpmm_jax.evaluation import (
    Bin,
    accuracy_gain,
    calibration_error,
    choice_accuracy,
    fit_temperature,
    measure_pairs,
    reliability,
)
from tpmm_jax.evaluation.pair_rewards import choice_share


def test_measures_of_four_pairs():
    rewards_PN = np.array([[2.0, 1.0], [0.0, 0.0], [1.0, 3.0], [3.0, 0.0]])
    lengths_PN = np.array([[5, 3], [4, 4], [2, 6], [7, 1]])
    found = measure_pairs(rewards_PN, lengths_PN, ["a", "b", "c", "a"])
    assert found["pairs"] == 4 and found["prompts"] == 3
    assert found["accuracy"] == 2.5 / 4 and found["ties"] == 0.25
    assert found["margin"] == 0.5 and found["mean_reward"] == 1.25
    losses = [math.log1p(math.exp(-m)) for m in (1, 0, -2, 3)]
    assert found["loss"] == pytest.approx(np.mean(losses))
    shares = [1 / (1 + math.exp(m)) for m in (1, 0, -2, 3)]
    assert found["brier"] == pytest.approx(np.mean(np.square(shares)))
    assert found["length/longer_wins"] == 2.5 / 4
    assert found["length/chosen_longer/pairs"] == 2
    assert found["length/chosen_longer/accuracy"] == 1.0
    assert found["length/chosen_shorter/accuracy"] == 0.0
    assert found["length/pearson"] == pytest.approx(
        np.corrcoef(rewards_PN.ravel(), lengths_PN.ravel())[0, 1]
    )


def test_answers_of_one_length_have_no_correlation():
    found = measure_pairs(np.array([[1.0, 0.0]]), np.array([[3, 3]]), ["a"])
    assert (
        "length/pearson" not in found and "length/chosen_longer/accuracy" not in found
    )


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_temperature_is_that_of_the_labels(scale):
    rng = np.random.default_rng(0)
    truth_P = rng.normal(size=40_000) * 2
    labels_P = rng.random(40_000) < 1 / (1 + np.exp(-truth_P))
    margin_P = np.where(labels_P, truth_P, -truth_P) * scale
    found = fit_temperature(margin_P)
    assert found == pytest.approx(scale, rel=0.05)
    assert calibration_error(reliability(margin_P / found)) < 0.01
    assert calibration_error(reliability(margin_P)) > 0.05


def test_no_temperature_mends_chance_and_one_mends_perfection():
    assert fit_temperature(np.array([1.0, -1.0])) is None
    assert fit_temperature(np.array([-3.0, 1.0])) is None
    # Platt's target 11 / 12 for ten pairs that are all right by 1: ln 11.
    found = fit_temperature(np.ones(10))
    assert found == pytest.approx(1 / math.log(11))


def test_bins_hold_equally_many_pairs():
    curve = reliability(np.linspace(-3, 5, 200))
    assert [one.pairs for one in curve] == [20] * 10
    assert sorted(curve) == curve
    assert len(reliability(np.ones(12))) == 1
    assert calibration_error([Bin(0.75, 1.0, 3), Bin(0.9, 0.8, 1)]) == pytest.approx(
        (0.75 + 0.1) / 4
    )


def test_a_choice_of_four():
    assert choice_share(1.0, [0.0, 0.0, 0.0], 4) == 1.0
    assert choice_share(1.0, [0.0, 0.0, 2.0], 4) == 0.0
    assert choice_share(1.0, [1.0, 1.0, 1.0], 4) == 0.25
    # Three of four: the one that is better is left out once in four.
    assert choice_share(1.0, [0.0, 0.0, 0.0, 2.0], 4) == 0.25


def test_choices_are_pairs_of_one_prompt_and_chosen_answer():
    rewards_PN = np.array([[1.0, 0.0], [1.0, 0.5], [1.0, 0.2], [0.0, 1.0]])
    names = ["p", "p", "p", "q"], ["c", "c", "c", "d"], ["x", "y", "z", "w"]
    share, count = choice_accuracy(rewards_PN, *names)
    assert (share.mean, count) == (1.0, 1)
    assert choice_accuracy(rewards_PN, *names, size=5) is None


def test_gains_are_paired_and_by_prompt():
    rng = np.random.default_rng(0)
    margin_P, before_P = rng.normal(size=(2, 60))
    prompts = [number // 4 if number < 40 else 10 + number for number in range(60)]
    gain = accuracy_gain(margin_P, before_P, prompts)
    assert gain.mean == pytest.approx(np.mean(margin_P > 0) - np.mean(before_P > 0))
    assert gain.low < gain.mean < gain.high
    # The same pairs twice say no more of other prompts.
    twice = accuracy_gain(*(np.tile(x, 2) for x in (margin_P, before_P)), prompts * 2)
    np.testing.assert_allclose(twice, gain)
