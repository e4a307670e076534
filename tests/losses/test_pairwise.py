"""Preference losses against their formulas and TRL's values."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.errors import BadInput
from tpmm_jax.losses import (
    LOSSES,
    LossConfig,
    PairLogProbs,
    loss_at_zero,
    pair_metrics,
)

CONFIGS = [
    LossConfig(name="dpo", beta=0.3),
    LossConfig(name="cdpo", beta=0.3, label_smoothing=0.1),
    LossConfig(name="robust", beta=0.3, label_smoothing=0.2),
    LossConfig(name="ipo", beta=0.3),
    LossConfig(name="ipo", beta=0.3, length_normalized=False),
    LossConfig(name="hinge", beta=0.3),
]
NAMES = [f"{c.name}{'' if c.length_normalized else ' of sums'}" for c in CONFIGS]


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def formula(config, policy, reference, length):
    """The table of losses, in float64 NumPy."""
    ratio = policy - reference
    z, eps = config.beta * (ratio[:, 0] - ratio[:, 1]), config.label_smoothing
    if config.name == "dpo":
        return -log_sigmoid(z)
    if config.name == "cdpo":
        return -(1 - eps) * log_sigmoid(z) - eps * log_sigmoid(-z)
    if config.name == "robust":
        loss = -(1 - eps) * log_sigmoid(z) + eps * log_sigmoid(-z)
        return loss / (1 - 2 * eps)
    if config.name == "ipo":
        if config.length_normalized:
            ratio = ratio / length
        return (ratio[:, 0] - ratio[:, 1] - 1 / (2 * config.beta)) ** 2
    return np.maximum(0, 1 - z)


def inputs(B=13):
    rng = np.random.default_rng(5)
    policy, reference = rng.normal(-30, 9, (2, B, 2)).astype(np.float32)
    length = rng.integers(1, 40, (B, 2)).astype(np.int32)
    return policy, reference, length


def logps(policy, reference, length):
    return PairLogProbs(*map(jnp.asarray, (policy, reference, length)))


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_loss_is_its_formula(config):
    policy, reference, length = inputs()
    found = LOSSES[config.name](logps(policy, reference, length), config)
    wanted = formula(config, *(x.astype(np.float64) for x in inputs()))
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_gradient_is_the_formulas_slope(config):
    policy, reference, length = inputs()

    def total(policy):
        return jnp.sum(LOSSES[config.name](logps(policy, reference, length), config))

    found = np.asarray(jax.grad(total)(jnp.asarray(policy)))
    exact = [x.astype(np.float64) for x in inputs()]
    for n in range(2):
        step = np.zeros_like(exact[0])
        step[:, n] = 1e-5
        up = formula(config, exact[0] + step, *exact[1:])
        down = formula(config, exact[0] - step, *exact[1:])
        np.testing.assert_allclose(
            found[:, n], (up - down) / 2e-5, rtol=2e-5, atol=1e-6
        )


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_loss_at_policy_equal_to_reference(config):
    policy, _, length = inputs()
    found = LOSSES[config.name](logps(policy, policy, length), config)
    np.testing.assert_allclose(found, loss_at_zero(config), rtol=1e-6)
    wanted = formula(config, *(np.zeros((1, 2)),) * 2, np.ones((1, 2)))
    np.testing.assert_allclose(loss_at_zero(config), wanted, rtol=1e-12)


def test_every_loss_has_a_value_at_zero():
    for name in LOSSES:
        smoothing = 0.1 if name in ("cdpo", "robust") else 0.0
        config = LossConfig(name=name, label_smoothing=smoothing)
        config.validate()
        assert loss_at_zero(config) > 0


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_extreme_margins_stay_finite(config):
    policy = np.asarray([[1e4, -1e4], [-1e4, 1e4], [0, 0]], np.float32)
    case = logps(policy, np.zeros_like(policy), np.ones((3, 2), np.int32))
    value, grad = jax.value_and_grad(
        lambda p: jnp.sum(LOSSES[config.name](case._replace(policy_BN=p), config))
    )(case.policy_BN)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_metrics_are_trls():
    policy, reference, length = inputs()
    found = pair_metrics(logps(policy, reference, length), 0.3)
    ratio = 0.3 * (policy.astype(np.float64) - reference)
    wanted = {
        "rewards/chosen": ratio[:, 0],
        "rewards/rejected": ratio[:, 1],
        "rewards/accuracies": ratio[:, 0] > ratio[:, 1],
        "rewards/margins": ratio[:, 0] - ratio[:, 1],
        "logps/chosen": policy[:, 0],
        "logps/rejected": policy[:, 1],
    }
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)


OURS = {"sigmoid": "dpo", "ipo": "ipo", "hinge": "hinge", "robust": "robust"}


def trl_cases():
    fixtures = pathlib.Path(__file__).parents[1] / "fixtures"
    return json.loads((fixtures / "dpo_losses.json").read_text())


def ours(settings):
    """TRL's settings as a LossConfig, or None where we have no such loss."""
    plain = (
        len(settings["loss_types"]) == 1
        and settings["loss_types"][0] in OURS
        and settings["f_divergence_type"] == "reverse_kl"
        and settings["ld_alpha"] in (None, 1.0)
        and not settings["use_weighting"]
    )
    if not plain:
        return None
    name = OURS[settings["loss_types"][0]]
    eps = settings["label_smoothing"]
    if name == "robust":
        # Robust DPO without noise is DPO, and is asked for by that name.
        name = "robust" if eps else "dpo"
    # TRL's sigmoid ignores label smoothing.
    smoothing = eps if name == "robust" else 0.0
    return LossConfig(name=name, beta=settings["beta"], label_smoothing=smoothing)


CASES = [(c["name"], c, ours(c["settings"])) for c in trl_cases()["cases"]]
CASES = [case for case in CASES if case[2] is not None]


@pytest.mark.parametrize("name, case, config", CASES, ids=[c[0] for c in CASES])
def test_loss_and_gradient_agree_with_trl(name, case, config):
    config.validate()
    data = trl_cases()["inputs"]
    policy, reference, length = (
        np.stack([data[chosen], data[rejected]], axis=1)
        for chosen, rejected in (
            ("policy_chosen_logps", "policy_rejected_logps"),
            ("ref_chosen_logps", "ref_rejected_logps"),
            ("chosen_len", "rejected_len"),
        )
    )
    case_logps = logps(
        policy.astype(np.float32), reference.astype(np.float32), length.astype(np.int32)
    )

    def mean(policy_BN):
        return jnp.mean(
            LOSSES[config.name](case_logps._replace(policy_BN=policy_BN), config)
        )

    loss, grad = jax.value_and_grad(mean)(case_logps.policy_BN)
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-6, atol=1e-6)
    if case["grad_chosen"] is not None:
        np.testing.assert_allclose(grad[:, 0], case["grad_chosen"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(grad[:, 1], case["grad_rejected"], rtol=0, atol=1e-6)
    metrics = pair_metrics(case_logps, config.beta)
    for key, value in case["metrics"].items():
        np.testing.assert_allclose(jnp.mean(metrics[key]), value, rtol=1e-5, atol=1e-6)


def test_the_losses_that_trl_has_are_all_compared():
    assert len(CASES) >= 10
    assert {config.name for *_, config in CASES} == {"dpo", "ipo", "hinge", "robust"}


@pytest.mark.parametrize(
    "wrong, field",
    [
        (dict(name="dpoo"), "loss.name"),
        (dict(beta=0.0), "loss.beta"),
        (dict(beta=float("nan")), "loss.beta"),
        (dict(beta=float("inf")), "loss.beta"),
        (dict(name="cdpo"), "loss.label_smoothing"),
        (dict(name="robust", label_smoothing=0.5), "loss.label_smoothing"),
        (dict(name="dpo", label_smoothing=0.1), "loss.label_smoothing"),
        (dict(name="dpo", length_normalized=False), "loss.length_normalized"),
    ],
)
def test_configs_without_meaning_are_refused(wrong, field):
    with pytest.raises(BadInput, match=field):
        LossConfig(**wrong).validate()
