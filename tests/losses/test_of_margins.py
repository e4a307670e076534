"""Which losses a reference known up to a constant of the prompt serves."""

import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.losses import LOSSES, LossConfig
from tpmm_jax.losses.inputs import Moving, PairLogProbs
from tpmm_jax.losses.objective import pair_losses
from tpmm_jax.losses.registry import is_reference_free


def configs(name):
    """Every form of a loss that may or may not go by the margin alone."""
    usual = {"cdpo": 0.1, "robust": 0.1, "exo": 0.1}
    base = {"name": name, "beta": 0.5}
    if name in usual:
        base["label_smoothing"] = usual[name]
    yield LossConfig(**base)
    if name == "ipo":
        yield LossConfig(**base, length_normalized=False)
    if "f_divergence_type" in LOSSES[name].reads:
        yield LossConfig(**base, f_divergence_type="forward_kl")


@pytest.mark.parametrize("name", [n for n in LOSSES if not is_reference_free([n])])
def test_of_margins_says_what_a_constant_of_the_prompt_changes(name):
    rng = np.random.default_rng(0)
    policy, reference = rng.normal(-20, 4, (2, 6, 2)).astype(np.float32)
    lengths = rng.integers(3, 12, (6, 2))
    shift = rng.normal(0, 2, (6, 1)).astype(np.float32)

    def loss(config, reference):
        zero, one = jnp.float32(0.0), jnp.float32(1.0)
        found = PairLogProbs(
            jnp.asarray(policy), jnp.asarray(reference), jnp.asarray(lengths),
            moving=Moving(zero, one, jnp.int32(1), jnp.int32(0)),
            reward_margin_B=jnp.asarray(rng.normal(size=6), jnp.float32) * 0 + 1.5,
        )  # fmt: skip
        return np.asarray(pair_losses(found, config.objective())[name])

    for config in configs(name):
        plain, shifted = loss(config, reference), loss(config, reference + shift)
        same = np.allclose(plain, shifted, rtol=1e-4, atol=1e-5)
        assert same == config.of_margins, config


def test_inpo_is_ipo_of_sums_against_a_mixture():
    """(D - r D_0 - (1 - r) D_{t-1} - 1 / (2 eta))^2, D of log-probs alone (2407.00617).

    The reference of the mixture is r log p_0 + (1 - r) log p_{t-1}; eta is beta.
    """
    rng = np.random.default_rng(1)
    policy, first, last = rng.normal(-20, 4, (3, 5, 2))
    r, eta = 1 / 3, 0.01
    mixture = (r * first + (1 - r) * last).astype(np.float32)
    config = LossConfig(name="ipo", beta=eta, length_normalized=False)
    found = PairLogProbs(
        jnp.asarray(policy, jnp.float32), jnp.asarray(mixture), jnp.ones((5, 2), int)
    )
    loss = pair_losses(found, config.objective())["ipo"]
    D, D_0, D_1 = (x[:, 0] - x[:, 1] for x in (policy, first, last))
    wanted = (D - r * D_0 - (1 - r) * D_1 - 1 / (2 * eta)) ** 2
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
