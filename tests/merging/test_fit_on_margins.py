"""Fusion weights fitted on margins: the optimum, the choice, what is left out."""

import numpy as np
import pytest
import scipy.optimize

from tpmm_jax.merging import Margins, margins
from tpmm_jax.merging.margins import (
    FOLDS,
    MAX_C,
    PENALTIES,
    clustered,
    fit_weights,
    nothing_learned,
    solve,
)

PAIRS_PER_PROMPT = 6


def draw(prompts, c_K, rng):
    """Margins whose labels follow sigma(D c), six pairs a prompt."""
    D_PK = rng.normal(size=(prompts * PAIRS_PER_PROMPT, len(c_K)))
    right_P = rng.random(len(D_PK)) < 1 / (1 + np.exp(-D_PK @ np.asarray(c_K)))
    names = np.repeat(np.arange(prompts), PAIRS_PER_PROMPT).tolist()
    D_PK = np.where(right_P[:, None], D_PK, -D_PK)
    return Margins(D_PK, names, np.zeros(len(c_K)))


def oracle(D_PK, weight_P, tau):
    """The optimum by scipy, from several starts."""

    def loss(c):
        apart = c - c.mean()
        wrong_P = 1 / (1 + np.exp(np.minimum(D_PK @ c, 700)))
        value = weight_P @ np.logaddexp(0, -D_PK @ c) + tau / 2 * apart @ apart
        return value, -(weight_P * wrong_P) @ D_PK + tau * apart

    K = D_PK.shape[1]
    tried = [
        scipy.optimize.minimize(
            loss, np.full(K, start), jac=True, method="L-BFGS-B",
            bounds=[(0, MAX_C)] * K, options={"ftol": 1e-15, "gtol": 1e-10},
        )
        for start in (0.0, 1.0)
    ]  # fmt: skip
    best = min(tried, key=lambda found: found.fun)
    return best.x, best.fun, loss


@pytest.mark.parametrize("K", [2, 5, 15])
@pytest.mark.parametrize("kind", ["nothing", "all alike", "one", "separable"])
def test_the_optimum_is_scipys(K, kind):
    """The same loss, conditions that hold to 1e-6, also at weights of zero."""
    rng = np.random.default_rng(K)
    true = {"nothing": 0, "all alike": 1 / K, "one": np.eye(K)[-1], "separable": 0}
    D_PK = draw(64, true[kind] * np.ones(K), rng).margin_PK
    if kind == "separable":
        D_PK[:, 0] = np.abs(D_PK[:, 0]) + 0.5
    weight_P = rng.random(len(D_PK))
    weight_P /= weight_P.sum()
    # As many problems as a fit solves, so that one program does for all tests.
    taus = np.tile(PENALTIES, FOLDS + 1)
    c_RK, residual_R = solve(D_PK, np.stack([weight_P] * len(taus)), taus)
    assert c_RK.dtype == np.float64 and np.all(residual_R <= 1e-6)
    for c_K, tau in zip(c_RK, PENALTIES, strict=False):
        _, wanted, loss = oracle(D_PK, weight_P, tau)
        found, gradient_K = loss(c_K)
        assert found <= wanted + 1e-8
        off_K = c_K - np.clip(c_K - gradient_K, 0, MAX_C)
        assert np.abs(off_K).max() <= 1e-6
    if kind == "one" and K > 2:
        assert np.any(c_RK[0] < 1e-5), "no weight of zero was met"


def test_without_the_optimum_the_weights_are_equal(monkeypatch):
    drawn = draw(64, [0.0, 0.0, 2.0], np.random.default_rng(1))
    assert fit_weights(drawn).learned

    def unsolved(D_PK, weight_RP, tau_R):
        return np.tile([0.0, 0.0, 1.0], (len(tau_R), 1)), np.full(len(tau_R), 0.1)

    monkeypatch.setattr(margins, "solve", unsolved)
    found = fit_weights(drawn)
    assert not found.learned and found.residual == 0.1
    np.testing.assert_array_equal(found.weights_K, np.full(3, 1 / 3))


@pytest.mark.parametrize("changes, wanted", [
    ({}, "the held-out pairs did not tell the checkpoints apart"),
    ({"held_out_prompts": 8}, "the held-out pairs have 8 prompts, too few to weight"),
    ({"residual": 1e-3}, "the weights' optimum was not found (residual 1.0e-03)"),
    ({"learned": True}, ""),
    ({"left_out": {"2": "its weights may be broken"}}, ""),
])  # fmt: skip
def test_why_nothing_was_learned_is_told(changes, wanted):
    record = {
        "learned": False, "left_out": {}, "residual": 1e-9, "held_out_prompts": 64,
        "accuracies": [[0.5, 0.4, 0.6]] * 2,
    }  # fmt: skip
    found = nothing_learned(record | changes)
    assert found.startswith(wanted) and bool(found) == bool(wanted)
    # Of weights that were trained through the network there is nothing to tell.
    assert nothing_learned({"logits": [[0.0, 0.0]], "scale": 1.0}) == ""


@pytest.mark.parametrize("prompts, pairs", [(32, 3), (64, 1)])
def test_pairs_that_are_all_right_are_solved(prompts, pairs):
    """Correlated checkpoints that separate every pair: c goes to its bound."""
    rng = np.random.default_rng(prompts)
    for _ in range(4):
        shared_P1 = rng.normal(size=(prompts * pairs, 1))
        D_PK = np.abs(shared_P1 + 0.5 * rng.normal(size=(len(shared_P1), 3)))
        names = np.repeat(np.arange(prompts), pairs).tolist()
        found = fit_weights(Margins(D_PK, names, np.zeros(3)))
        assert found.residual <= 1e-6


def test_few_prompts_decide_nothing():
    found = fit_weights(draw(29, [0.0, 5.0], np.random.default_rng(0)))
    assert not found.learned and found.prompts == 29 and found.gain == 0


def test_the_scale_of_margins_changes_nothing():
    drawn = draw(64, [0.0, 1.0, 0.2], np.random.default_rng(0))
    found = fit_weights(drawn)
    scaled = Margins(37.0 * drawn.margin_PK, drawn.prompts, drawn.drift_K)
    again = fit_weights(scaled)
    assert found.learned and again.learned
    np.testing.assert_allclose(again.weights_K, found.weights_K, atol=1e-5)
    np.testing.assert_allclose(37 * again.coefficients_K, found.coefficients_K, 1e-4)
    np.testing.assert_allclose(again.gain, found.gain, rtol=1e-4)


def test_a_checkpoint_that_knows_the_labels_gets_the_weight():
    found = fit_weights(draw(85, [0.0, 0.0, 2.0], np.random.default_rng(1)))
    assert found.learned and found.gain > 4 * found.gain_error
    assert found.weights_K[2] > 0.8
    np.testing.assert_allclose(found.weights_K.sum(), 1.0, rtol=1e-12)
    assert found.accuracies[2].low > 0.6 > found.accuracies[0].high


def test_without_a_signal_the_weights_are_equal():
    found = fit_weights(draw(64, np.zeros(3), np.random.default_rng(0)))
    assert not found.learned
    np.testing.assert_array_equal(found.weights_K, np.full(3, 1 / 3))
    # What the pairs alone would have given is kept beside it.
    assert found.coefficients_K.shape == (3,)


def test_margins_of_zero_one_prompt_and_one_checkpoint():
    nothing = Margins(np.zeros((12, 2)), [0, 1] * 6, np.zeros(2))
    lone = draw(1, [0.0, 5.0], np.random.default_rng(0))
    for made in (nothing, lone):
        found = fit_weights(made)
        assert not found.learned
        np.testing.assert_array_equal(found.weights_K, [0.5, 0.5])
    one = fit_weights(draw(9, [1.0], np.random.default_rng(0)))
    np.testing.assert_array_equal(one.weights_K, [1.0])


def test_pairs_of_a_prompt_share_a_fold():
    """Copies of a prompt's pairs add no evidence: the standard error knows it."""
    drawn = draw(40, [0.0, 0.8], np.random.default_rng(2))
    twice = Margins(
        np.tile(drawn.margin_PK, (2, 1)), list(drawn.prompts) * 2, drawn.drift_K
    )
    once, often = fit_weights(drawn), fit_weights(twice)
    np.testing.assert_allclose(often.gain, once.gain, atol=1e-6)
    np.testing.assert_allclose(often.gain_error, once.gain_error, rtol=1e-3)


def test_the_clustered_error_is_that_of_the_prompts_means():
    rng = np.random.default_rng(0)
    values_GR = rng.normal(size=(30, 4)) + rng.normal(size=(30, 1))
    mean, error = clustered(values_GR.ravel(), np.repeat(np.arange(30), 4))
    means_G = values_GR.mean(axis=1)
    np.testing.assert_allclose(mean, means_G.mean())
    np.testing.assert_allclose(error, means_G.std(ddof=1) / np.sqrt(30))


def test_a_checkpoint_trained_on_reversed_labels_is_left_out():
    drawn = draw(85, [1.0, 1.0, 0.0], np.random.default_rng(3))
    poisoned = drawn.margin_PK.copy()
    poisoned[:, 2] = -poisoned[:, 0] + 0.1 * poisoned[:, 2]
    found = fit_weights(Margins(poisoned, drawn.prompts, drawn.drift_K))
    assert list(found.left_out) == [3] and "rejected answers" in found.left_out[3]
    assert found.weights_K[2] == 0 and found.weights_K[:2].min() > 0


def test_broken_weights_are_left_out_by_their_log_probs():
    drawn = draw(40, np.zeros(3), np.random.default_rng(4))
    for drift in (-5.0, -np.inf):
        drift_K = np.array([-0.2, drift, -0.4])
        found = fit_weights(Margins(drawn.margin_PK, drawn.prompts, drift_K))
        assert list(found.left_out) == [2] and "broken" in found.left_out[2]
        np.testing.assert_array_equal(found.weights_K, [0.5, 0, 0.5])
    # A trajectory that moves away as a whole is no fault of one checkpoint.
    healthy = Margins(drawn.margin_PK, drawn.prompts, np.array([-1.0, -2.0, -2.6]))
    assert not fit_weights(healthy).left_out


def test_never_all_are_left_out():
    rng = np.random.default_rng(5)
    wrong_P1 = -np.abs(rng.normal(size=(240, 1)))
    both = Margins(np.tile(wrong_P1, 2), np.arange(240).tolist(), np.zeros(2))
    found = fit_weights(both)
    assert not found.left_out and not found.learned


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [64, 384])
@pytest.mark.parametrize("K", [2, 5, 15])
def test_how_often_the_choice_is_wrong(K, prompts):
    """At most 20 % where equal weights are right, 5 % where there is much to gain.

    "Much" is a gain of four standard errors: the strength of one true checkpoint is
    raised until the mean gain over simulations has that size.
    """
    runs = 100

    def share(c_K, seed):
        rng = np.random.default_rng([K, prompts, seed])
        fits = [fit_weights(draw(prompts, c_K, rng)) for _ in range(runs)]
        z = np.mean([f.gain for f in fits]) / np.mean([f.gain_error for f in fits])
        return np.mean([f.learned for f in fits]), z

    assert share(np.zeros(K), 0)[0] <= 0.20
    for strength in (0.2, 1.0):
        assert share(np.full(K, strength / np.sqrt(K)), 1)[0] <= 0.20
    strength = 0.1
    while (found := share(strength * np.eye(K)[-1], 2))[1] < 4:
        strength *= 1.3
    assert found[0] >= 0.95
