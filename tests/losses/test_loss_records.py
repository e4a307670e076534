"""One entry of LOSSES is a whole loss, and a sweep over its constants compiles once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.errors import BadInput
from tpmm_jax.losses import (
    LOSSES,
    Loss,
    LossConfig,
    loss_at_zero,
    pair_loss,
    pair_metrics,
)
from tpmm_jax.losses.inputs import example_pair


def squared(logps, *, beta):
    return (1 - beta * logps.margin_B()) ** 2


def test_a_made_up_loss_is_one_entry(monkeypatch):
    record = Loss(function=squared, kind="pairwise", at_zero=1.0, trl_name="square")
    monkeypatch.setitem(LOSSES, "squared", record)
    config, logps = LossConfig(name=["squared", "sft"], beta=0.5), example_pair()
    config.validate()
    for wrong, message in (
        (LossConfig(name="squared", label_smoothing=0.1), "no meaning for squared"),
        (LossConfig(name="square"), "TRL's 'square' is 'squared' here"),
    ):
        with pytest.raises(BadInput, match=message):
            wrong.validate()
    objective = config.objective()
    # (1 - 0.5 * 3)^2 + 10 / 4.
    np.testing.assert_allclose(pair_loss(logps, objective), [2.75], rtol=1e-6)
    gradient = jax.grad(
        lambda p: jnp.sum(pair_loss(logps._replace(policy_BN=p), objective))
    )(logps.policy_BN)
    np.testing.assert_allclose(gradient, [[0.5 - 0.25, -0.5]], rtol=1e-6)
    metrics = pair_metrics(logps, objective)
    assert metrics["loss/squared"] == 0.25 and metrics["rewards/margins"] == 1.5
    assert loss_at_zero(objective) == 1.0


@pytest.mark.parametrize(
    "changes, programs",
    [
        ([dict(beta=0.1), dict(beta=0.2)], 1),
        ([dict(name="aot"), dict(name="aot", label_smoothing=0.1)], 2),
        ([dict(name="cpo"), dict(name="cpo", cpo_alpha=0.0)], 2),
        ([dict(name=["dpo", "bco"], weights=[0.5, w]) for w in (0.1, 0.2)], 1),
        ([dict(name="madpo"), dict(name="madpo", c_max=2.0, tau=3.0, lam=0.5)], 1),
        ([dict(name="dr_dpo"), dict(name="dr_dpo", dr_beta=0.5)], 1),
        ([dict(ld_alpha=None), dict(ld_alpha=0.5), dict(ld_alpha=0.7)], 2),
    ],
    ids=str,
)
def test_constants_are_arguments_and_zeros_are_structure(changes, programs):
    loss, values = jax.jit(lambda *args: pair_loss(*args)), []
    logps = example_pair()._replace(reward_margin_B=jnp.ones(1))
    for config in (LossConfig(**change) for change in changes):
        values.append(float(loss(logps, config.objective())[0]))
        exact = pair_loss(logps, config.objective())[0]
        np.testing.assert_allclose(values[-1], exact, rtol=1e-6)
    assert loss._cache_size() == programs
