"""Weights of a shipped mean, fitted on rated samples."""

import numpy as np
import pytest
import scipy.optimize

from tpmm_jax.merging import RatedSamples, fit_listwise
from tpmm_jax.merging.listwise import _solve_all, expected_rewards

SAMPLES = 4


def draw(prompts: int, lead_K: list[float], seed: int) -> RatedSamples:
    """Policies whose log-probs follow the reward as far as ``lead_K`` says."""
    rng = np.random.default_rng(seed)
    reward_PR = rng.normal(size=(prompts, SAMPLES))
    noise_PRK = rng.normal(size=(prompts, SAMPLES, len(lead_K)))
    logp_PRK = -20 + noise_PRK + reward_PR[..., None] * np.asarray(lead_K)
    sampler_PR = np.full_like(reward_PR, -20.0)
    return RatedSamples(logp_PRK, sampler_PR, reward_PR, list(range(prompts)))


@pytest.mark.parametrize("K", [2, 5])
def test_the_optimum_is_scipys(K: int) -> None:
    samples = draw(200, np.linspace(-0.5, 1, K).tolist(), seed=K)

    def loss(logits_K: np.ndarray) -> float:
        weights_K = np.exp(logits_K - logits_K.max())
        return -float(expected_rewards(samples, weights_K / weights_K.sum()).mean())

    best = scipy.optimize.minimize(loss, np.zeros(K), options={"gtol": 1e-9})
    (found_K,) = _solve_all(samples, np.ones((1, 200), bool))
    assert found_K.sum() == pytest.approx(1, abs=1e-12)
    reached = expected_rewards(samples, found_K).mean()
    assert reached == pytest.approx(-best.fun, abs=1e-6)
    assert reached > expected_rewards(samples, np.full(K, 1 / K)).mean()


def test_one_policy_that_knows_the_reward_is_found() -> None:
    fit = fit_listwise(draw(200, [0, 0, 3, 0], seed=0))
    assert fit.learned and fit.gain > 2 * fit.gain_error
    assert fit.weights_K.argmax() == 2 and fit.weights_K[2] > 0.5


def test_nothing_to_learn_leaves_equal_weights() -> None:
    """One standard error: a sixth of hold-outs without any signal, or fewer."""
    wrong = sum(fit_listwise(draw(64, [1, 1, 1], seed)).learned for seed in range(30))
    assert wrong <= 6


def test_few_prompts_decide_nothing() -> None:
    fit = fit_listwise(draw(29, [0, 0, 9], seed=0))
    assert not fit.learned and fit.prompts == 29
    np.testing.assert_allclose(fit.weights_K, 1 / 3)


def test_missing_samples_count_nothing() -> None:
    """A prompt of fewer samples is as if it had no more."""
    whole = draw(60, [0, 1], seed=1)
    wide = RatedSamples(
        np.pad(whole.logp_PRK, ((0, 0), (0, 2), (0, 0)), constant_values=7),
        np.pad(whole.sampler_PR, ((0, 0), (0, 2))),
        np.pad(whole.reward_PR, ((0, 0), (0, 2)), constant_values=np.nan),
        whole.prompts,
    )
    one, other = fit_listwise(whole), fit_listwise(wide)
    np.testing.assert_allclose(one.weights_K, other.weights_K, atol=1e-9)
    assert one.gain == pytest.approx(other.gain, abs=1e-9)
