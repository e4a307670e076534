"""Preference losses: formulas that TRL does not give, D = 0, extremes, beta-DPO."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.losses import (
    LOSSES,
    LossConfig,
    PairLogProbs,
    completion_sums,
    init_loss_state,
    keep_reference_terms,
    loss_at_zero,
    pair_loss,
    pair_metrics,
    with_state,
)
from tpmm_jax.losses.batchwise import select_pairs
from tpmm_jax.losses.record import KINDS

SMOOTHED = ("cdpo", "robust", "exo")


def config_of(name, **changes):
    """A valid config of a loss."""
    values = dict(beta=2.0 if name in ("simpo", "alphapo") else 0.3)
    if name == "sft":
        values = {}
    if name in SMOOTHED:
        values["label_smoothing"] = 0.2
    return LossConfig(name=name, **{**values, **changes})


CONFIGS = [config_of(name) for name in LOSSES] + [
    config_of("ipo", length_normalized=False),
    config_of("dpo", f_divergence_type="js_divergence"),
    config_of(["dpo", "bco", "sft"], weights=[0.8, 0.2, 1.0]),
    config_of("aot", label_smoothing=0.1),
]
NAMES = [f"{i}-{c.title}" for i, c in enumerate(CONFIGS)]


def arrays(B=13, seed=5):
    rng = np.random.default_rng(seed)
    policy, reference = rng.normal(-30, 9, (2, B, 2)).astype(np.float32)
    length = rng.integers(1, 40, (B, 2)).astype(np.int32)
    return policy, reference, length


def inputs(config, policy, reference, length, weight=None, state=None):
    logps = PairLogProbs(
        jnp.asarray(policy),
        None if config.reference_free else jnp.asarray(reference),
        jnp.asarray(length),
        None if weight is None else jnp.asarray(weight),
        # Of margins 0 MADPO is DPO.
        reward_margin_B=jnp.zeros(len(policy)) if config.needs_margins else None,
    )
    if state is None:
        state = init_loss_state(config)
    return with_state(logps, state, config.objective())


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def test_cdpo_and_ipo_of_sums_are_their_formulas():
    policy, reference, length = arrays()
    ratio = policy.astype(np.float64) - reference
    z, eps = 0.3 * (ratio[:, 0] - ratio[:, 1]), 0.2
    config = config_of("cdpo")
    found = pair_loss(inputs(config, policy, reference, length)[0], config.objective())
    wanted = -(1 - eps) * log_sigmoid(z) - eps * log_sigmoid(-z)
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6)
    config = config_of("ipo", length_normalized=False)
    found = pair_loss(inputs(config, policy, reference, length)[0], config.objective())
    np.testing.assert_allclose(found, (z / 0.3 - 1 / 0.6) ** 2, rtol=2e-6)


def test_dr_dpo_is_its_formula_and_gives_dpo_s_mean_for_a_large_beta():
    policy, reference, length = arrays()
    ratio = policy.astype(np.float64) - reference
    loss = -log_sigmoid(0.3 * (ratio[:, 0] - ratio[:, 1]))
    weight = np.asarray([1.0] * 11 + [0.0] * 2, np.float32)
    for dr_beta, wanted in (
        (1.0, -np.log(np.mean(np.exp(-loss[:11])))),
        (0.5, -0.5 * np.log(np.mean(np.exp(-loss[:11] / 0.5)))),
        (1e5, loss[:11].mean()),
    ):
        config = config_of("dr_dpo", dr_beta=dr_beta)
        logps, *_ = inputs(config, policy, reference, length, weight)
        found = np.asarray(pair_loss(logps, config.objective()))
        # float32 of b' = 1e5: the logarithm is near 0.
        tolerance = 2e-6 if dr_beta < 10 else 2e-2
        np.testing.assert_allclose(found[:11], wanted, rtol=tolerance)
        assert not found[11:].any()


def test_every_record_is_whole():
    for loss in LOSSES.values():
        assert loss.kind in KINDS and set(loss.usual) <= set(loss.reads)
        blind = loss.kind in ("reference_free", "likelihood")
        assert (loss.at_zero is None) == blind and (loss.rewards is None or blind)
    for config in CONFIGS:
        config.validate()
        assert hash(config) is not None


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_loss_at_policy_equal_to_reference(config):
    policy, _, length = arrays()
    zero = loss_at_zero(config.objective())
    if zero is None:
        assert config.reference_free
        return
    logps, *_ = inputs(config, policy, policy, length)
    found = jnp.mean(pair_loss(logps, keep_reference_terms(config.objective())))
    np.testing.assert_allclose(found, zero, rtol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_extreme_margins_stay_finite(config):
    policy = np.asarray([[1e4, -1e4], [-1e4, 1e4], [0, 0]], np.float32)
    if config.reference_free:
        policy -= 1e4
    if config.name in ("discopop", "alphapo"):
        # exp(-z) itself: beyond e^88 there is no float32.
        policy /= 1e3
    logps, *_ = inputs(config, policy, np.zeros_like(policy), np.ones((3, 2), np.int32))
    value, grad = jax.value_and_grad(
        lambda p: jnp.sum(pair_loss(logps._replace(policy_BN=p), config.objective()))
    )(logps.policy_BN)
    assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_order_and_filler_change_nothing(config):
    """Mean loss, and each pair's gradient, in another order and with filler rows."""
    if config.name == "beta_dpo":
        # Which pairs are kept is drawn by place.
        config = dataclasses.replace(config, beta_keep=1.0)
    policy, reference, length = arrays(B=7)

    @jax.jit
    def mean_and_gradient(logps, weight):
        def mean(p):
            loss_B = pair_loss(logps._replace(policy_BN=p), config.objective())
            return jnp.sum(loss_B * weight) / 7

        return jax.value_and_grad(mean)(logps.policy_BN)

    def both(order, fill):
        rows = [*order, *order[:fill]]
        weight = np.asarray([1.0] * 7 + [0.0] * fill, np.float32)
        some = [x[rows] for x in (policy, reference, length)]
        logps, *_ = inputs(config, *some, weight)

        value, grad = mean_and_gradient(logps, weight)
        assert not np.asarray(grad)[7:].any()
        return value, np.asarray(grad)[np.argsort(order)]

    value, grad = both(np.arange(7), 0)
    for fill in (0, 3):
        found, turned = both(np.random.default_rng(1).permutation(7), fill)
        np.testing.assert_allclose(found, value, rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(turned, grad, rtol=2e-5, atol=1e-6)


def test_metrics_are_trls():
    policy, reference, length = arrays()
    config = config_of(["dpo", "sft"])
    found = pair_metrics(
        inputs(config, policy, reference, length)[0], config.objective()
    )
    ratio = 0.3 * (policy.astype(np.float64) - reference)
    wanted = {
        "rewards/chosen": ratio[:, 0],
        "rewards/rejected": ratio[:, 1],
        "rewards/accuracies": ratio[:, 0] > ratio[:, 1],
        "rewards/margins": ratio[:, 0] - ratio[:, 1],
        "logps/chosen": policy[:, 0],
        "logps/rejected": policy[:, 1],
        "loss/dpo": -log_sigmoid(ratio[:, 0] - ratio[:, 1]),
        "loss/sft": -policy[:, 0] / length[:, 0].mean(),
    }
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)


def test_rewards_without_a_reference_are_of_what_the_loss_compares():
    policy, reference, length = arrays()
    for name, wanted in (("cpo", policy), ("simpo", policy / length)):
        config = config_of(name)
        found = pair_metrics(
            inputs(config, policy, reference, length)[0], config.objective()
        )
        np.testing.assert_allclose(
            found["rewards/rejected"], config.beta * wanted[:, 1], rtol=1e-5
        )


def test_ld_alpha_weighs_what_exceeds_the_shorter_completion():
    mask = np.zeros((1, 2, 7), np.int32)
    mask[0, 0, 2:6], mask[0, 1, 2:4] = 1, 1
    logp = -np.arange(1.0, 13.0, dtype=np.float32).reshape(1, 2, 6)
    found = completion_sums(jnp.asarray(logp), jnp.asarray(mask), 0.25)
    np.testing.assert_allclose(found, [[-(2 + 3) - 0.25 * (4 + 5), -(8 + 9)]])
    logp[0, 1, 5] = np.nan
    assert np.isfinite(completion_sums(jnp.asarray(logp), jnp.asarray(mask), 0.0)).all()


def beta_batches(count=3, B=10):
    return [arrays(B, seed=20 + i) for i in range(count)]


def test_beta_dpo_follows_its_formula_over_batches():
    """Moving statistics, kept pairs, beta and loss in float64 NumPy."""
    config = config_of("beta_dpo", beta=0.1)
    objective = config.objective()
    state, mean, deviation = init_loss_state(config, 3), None, None
    clamped = 0
    for policy, reference, length in beta_batches(6):
        logps, state, metrics = inputs(config, policy, reference, length, state=state)
        ratio = policy.astype(np.float64) - reference
        gap = ratio[:, 0] - ratio[:, 1]
        first = mean is None
        mean = gap.mean() if first else 0.9 * mean + 0.1 * gap.mean()
        now = gap.std(ddof=1)
        deviation = now if first else 0.9 * deviation + 0.1 * now
        np.testing.assert_allclose(state.mean, mean, rtol=1e-5)
        np.testing.assert_allclose(state.deviation, deviation, rtol=1e-5)
        kept = np.asarray(objective.call(select_pairs, logps)[0])
        assert kept.sum() == 8
        beta = max(1e-3, 0.1 * (1 + 0.6 * (gap[kept].mean() - mean)))
        np.testing.assert_allclose(metrics["beta_dpo/beta"], beta, rtol=1e-4)
        wanted = -log_sigmoid(beta * gap[kept]).mean()
        np.testing.assert_allclose(
            jnp.mean(pair_loss(logps, objective)), wanted, rtol=1e-4
        )
        assert metrics["beta_dpo/clamped"] == float(beta == 1e-3)
        clamped += beta == 1e-3
    # Summed log-probs spread by tens of nats: the clamp is hit, as in the paper's code.
    assert 0 < clamped < 6 and int(state.seen) == 6


def test_beta_dpo_draws_without_replacement_by_its_weights():
    """Shares of kept pairs over many seeds against sequential sampling."""
    config = config_of("beta_dpo", beta_keep=0.5)
    policy = np.zeros((4, 2), np.float32)
    policy[:, 0] = [-1.0, 0.0, 0.2, 2.5]
    length = np.ones((4, 2), np.int32)
    logps, state, _ = inputs(config, policy, np.zeros_like(policy), length)

    def kept(seed):
        some = logps._replace(moving=state._replace(seed=seed))
        return config.objective().call(select_pairs, some)[0]

    found = np.asarray(jax.jit(jax.vmap(kept))(jnp.arange(20000))).mean(axis=0)
    gap = policy[:, 0].astype(np.float64)
    p = np.exp(-(((gap - gap.mean()) / gap.std(ddof=1)) ** 2) / 2)
    p /= p.sum()
    wanted = [
        p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i)
        for i in range(4)
    ]
    np.testing.assert_allclose(found, wanted, atol=0.015)


def test_beta_dpo_with_one_pair_or_filler_is_finite():
    config = config_of("beta_dpo")
    for weight in ([1.0, 0.0, 0.0], [0.0, 0.0, 0.0]):
        policy, reference, length = arrays(B=3)
        logps, _, metrics = inputs(
            config, policy, reference, length, np.asarray(weight, np.float32)
        )
        assert np.isfinite(pair_loss(logps, config.objective())).all()
        assert all(np.isfinite(x) for x in metrics.values())
