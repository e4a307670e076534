"""MADPO's weight: what its paper says of it, and what no number of it may break."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from tpmm_jax.losses import LossConfig, pair_loss, pair_metrics
from tpmm_jax.losses.inputs import example_pair
from tpmm_jax.losses.madpo import coefficient, weight

TAU = 6.907
# (c_max, tau, lam)
SETTINGS = [(4.0, TAU, 1.0), (2.0, TAU, 1.0), (4.0, 2.0, 3.0), (1.0, TAU, 1.0)]


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -np.asarray(x, np.float64)))


def paper_coefficient(size, c_max, tau, lam):
    """As the paper writes it, with its own ratio."""
    c_min = 1 / c_max
    ratio = (c_max - 1) / (1 - c_min)
    return c_min + (c_max - c_min) / (1 + ratio * np.exp(lam * (size - tau)))


def named(setting):
    return dict(zip(("c_max", "tau", "lam"), setting))


@pytest.mark.parametrize("setting", SETTINGS[:3], ids=str)
def test_coefficient_and_weight_are_the_paper_s(setting):
    h = np.linspace(-30, 30, 601)
    c = paper_coefficient(np.abs(h), *setting)
    found = coefficient(np.abs(h).astype(np.float32), **named(setting))
    np.testing.assert_allclose(found, c, rtol=2e-5)
    wanted = np.where(h > -setting[1], sigmoid(c * h) / sigmoid(h), 1.0)
    found = weight(h.astype(np.float32), **named(setting))
    # Near -tau the ratio of two small numbers follows h's own rounding.
    np.testing.assert_allclose(found, wanted, rtol=2e-4)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_c_is_one_at_tau_and_the_weight_one_at_zero_and_continuous(setting):
    tau = setting[1]
    np.testing.assert_allclose(coefficient(tau, **named(setting)), 1, rtol=1e-6)
    assert weight(0.0, **named(setting)) == 1
    sides = weight(jnp.asarray([-tau - 1e-4, -tau, -tau + 1e-4]), **named(setting))
    np.testing.assert_allclose(sides, 1, atol=2e-3)
    for h in (0.0, tau, -1.0, 2.0):
        near = weight(jnp.asarray([h - 1e-3, h, h + 1e-3]), **named(setting))
        np.testing.assert_allclose(near, near[1], atol=1e-2)


def test_the_values_of_the_specification():
    found = weight(jnp.asarray([0.5, 1.0, -1.0, -2.0]))
    np.testing.assert_allclose(found, [1.413, 1.342, 0.070, 0.0035], atol=5e-4)


def test_a_c_max_of_one_is_dpo():
    h = jnp.linspace(-200.0, 200.0, 801)
    np.testing.assert_array_equal(weight(h, c_max=1.0), 1.0)
    np.testing.assert_array_equal(coefficient(jnp.abs(h), c_max=1.0), 1.0)


@pytest.mark.parametrize("setting", SETTINGS[:3], ids=str)
@pytest.mark.parametrize("h", [0.3, 1.5, 5.0, 12.0])
def test_the_expected_loss_is_least_at_the_stretched_margin(h, setting):
    """Labels drawn by sigma(h): beta D = c h below tau, log [s(c h) / s(-h)] beyond."""
    c = paper_coefficient(h, *setting)
    right, wrong = np.asarray(
        weight(np.asarray([h, -h], np.float32), **named(setting)), np.float64
    )

    def expected(z):
        share = sigmoid(h)
        won, lost = np.logaddexp(0, -z), np.logaddexp(0, z)
        return share * right * won + (1 - share) * wrong * lost

    found = minimize_scalar(expected, bounds=(-60, 60), method="bounded")
    below = h < setting[1]
    # sigma(h) w(h) = sigma(c h), sigma(-h) w(-h) = sigma(-c h) below tau.
    wanted = c * h if below else np.log(sigmoid(c * h) / sigmoid(-h))
    np.testing.assert_allclose(found.x, wanted, atol=2e-3 * max(1, abs(wanted)))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_margins_to_200_are_finite_and_get_no_gradient(setting):
    h = jnp.concatenate([jnp.linspace(-200, 200, 401), jnp.asarray([-TAU, TAU])])
    config = LossConfig(name="madpo", **named(setting))
    logps = example_pair()._replace(reward_margin_B=h[:, None])

    def total(policy_BN, h_B):
        size = len(h)
        some = logps._replace(
            policy_BN=jnp.broadcast_to(policy_BN, (size, 2)), reward_margin_B=h_B
        )
        return jnp.sum(pair_loss(some, config.objective()))

    value, (d_policy, d_margin) = jax.value_and_grad(total, (0, 1))(logps.policy_BN, h)
    assert np.isfinite(value) and np.isfinite(d_policy).all()
    assert not np.asarray(d_margin).any()
    w = np.asarray(weight(h, **named(setting)))
    assert np.isfinite(w).all() and (w >= 0).all() and w.max() < 2
    # From rewards that are a function of what is trained, too.
    assert jax.grad(lambda r: jnp.sum(weight(h * r, **named(setting))))(1.0) == 0


def test_the_loss_is_a_plain_mean_with_its_metrics():
    h = jnp.asarray([1.0, -1.0, -8.0])
    config = LossConfig(name="madpo", beta=0.5)
    logps = example_pair()
    logps = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), logps)
    logps = logps._replace(reward_margin_B=h)
    dpo = np.logaddexp(0, -1.5)
    c = paper_coefficient(1.0, 4.0, TAU, 1.0)
    w = [sigmoid(c) / sigmoid(1), sigmoid(-c) / sigmoid(-1), 1.0]
    found = pair_loss(logps, config.objective())
    np.testing.assert_allclose(found, dpo * np.asarray(w), rtol=1e-5)
    metrics = pair_metrics(logps, config.objective())
    np.testing.assert_allclose(metrics["madpo/weight"], w, rtol=1e-5)
    np.testing.assert_array_equal(metrics["madpo/margin_size"], [1, 1, 8])
    np.testing.assert_array_equal(metrics["madpo/above_tau"], [0, 0, 1])
    with pytest.raises(AssertionError, match="madpo needs margins"):
        pair_loss(logps._replace(reward_margin_B=None), config.objective())
