"""All losses by name, their weighted sum, what they are at D = 0, and metrics."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tpmm_jax.axes import CHOSEN, REJECTED
from tpmm_jax.losses import batchwise, pairwise, reference_free, sidewise
from tpmm_jax.losses.config import LossConfig
from tpmm_jax.losses.inputs import PairLogProbs

PairLoss = Callable[[PairLogProbs, LossConfig], Float[Array, " B"]]

LOSSES: dict[str, PairLoss] = {
    "dpo": pairwise.dpo,
    "cdpo": pairwise.cdpo,
    "robust": pairwise.robust,
    "ipo": pairwise.ipo,
    "hinge": pairwise.hinge,
    "sigmoid_norm": pairwise.sigmoid_norm,
    "exo": pairwise.exo,
    "discopop": pairwise.discopop,
    "nca": sidewise.nca,
    "bco": sidewise.bco,
    "sppo": sidewise.sppo,
    "apo_zero": sidewise.apo_zero,
    "apo_down": sidewise.apo_down,
    "aot": batchwise.aot,
    "aot_unpaired": batchwise.aot_unpaired,
    "beta_dpo": batchwise.beta_dpo,
    "sft": reference_free.sft,
    "simpo": reference_free.simpo,
    "alphapo": reference_free.alphapo,
    "orpo": reference_free.orpo,
    "cpo": reference_free.cpo,
    "cpo_hinge": reference_free.cpo_hinge,
    "cpo_ipo": reference_free.cpo_ipo,
}

LOG2 = math.log(2)
# The mean loss where every log-ratio is 0, for the self-check; None: such a loss does
# not look at the reference.
AT_ZERO: dict[str, Callable[[LossConfig], float] | None] = {
    "dpo": lambda c: LOG2,
    "cdpo": lambda c: LOG2,
    "robust": lambda c: LOG2,
    "ipo": lambda c: 1 / (4 * c.beta**2),
    "hinge": lambda c: 1.0,
    "sigmoid_norm": lambda c: LOG2,
    "exo": lambda c: (
        -LOG2 - (math.log(c.label_smoothing) + math.log1p(-c.label_smoothing)) / 2
    ),
    "discopop": lambda c: (LOG2 + 1) / 2,
    "nca": lambda c: 2 * LOG2,
    "bco": lambda c: 2 * LOG2,
    "sppo": lambda c: 1 / (2 * c.beta**2),
    "apo_zero": lambda c: 1.0,
    "apo_down": lambda c: 1.0,
    "aot": lambda c: LOG2,
    "aot_unpaired": lambda c: LOG2,
    "beta_dpo": lambda c: LOG2,
    "sft": None,
    "simpo": None,
    "alphapo": None,
    "orpo": None,
    "cpo": None,
    "cpo_hinge": None,
    "cpo_ipo": None,
}


def pair_loss(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """Returns the weighted sum of the configured losses, of each pair."""
    loss_B = sum(weight * LOSSES[name](logps, config) for name, weight in config.terms)
    return loss_B * pair_weights(logps)


def pair_weights(logps: PairLogProbs) -> Float[Array, " B"]:
    """Returns what each pair's loss is multiplied with: WPO's weight, or 1."""
    if logps.wpo_BN is None:
        return jnp.ones(logps.policy_BN.shape[0], logps.policy_BN.dtype)
    return jax.lax.stop_gradient(jnp.exp(jnp.sum(logps.wpo_BN, axis=1)))


def loss_at_zero(config: LossConfig) -> float | None:
    """Returns the mean loss at policy = reference in closed form, WPO's weights apart.

    Terms that do not look at the reference are left out; None if there is no other.
    """
    found = [
        weight * at_zero(config)
        for name, weight in config.terms
        if (at_zero := AT_ZERO[name]) is not None
    ]
    return sum(found) if found else None


def referenced(config: LossConfig) -> LossConfig:
    """Returns the loss without the terms that do not look at the reference."""
    terms = [(n, weight) for n, weight in config.terms if AT_ZERO[n] is not None]
    return dataclasses.replace(
        config,
        name=tuple(name for name, _ in terms),
        weights=tuple(weight for _, weight in terms),
    )


def rewards_BN(logps: PairLogProbs, config: LossConfig) -> Float[Array, "B N"]:
    """Returns the implicit rewards that are logged, as TRL's trainers do.

    beta times the log-ratio; of losses without a reference, beta times the log-prob
    that the loss compares: a sum ("cpo"), or a mean over tokens.
    """
    if logps.reference_BN is not None:
        return config.beta * logps.log_ratios_BN()
    if "alphapo" in config.names:
        return config.beta * reference_free.alphapo_rewards_BN(logps, config)
    if {"simpo", "orpo", "cpo_ipo"} & {*config.names}:
        return config.beta * reference_free.average_BN(logps)
    return config.beta * logps.policy_BN


def pair_metrics(logps: PairLogProbs, config: LossConfig) -> dict[str, jax.Array]:
    """Returns TRL's metrics, one value a pair [B]."""
    logps = jax.tree.map(jax.lax.stop_gradient, logps)
    rewards = rewards_BN(logps, config)
    chosen, rejected = rewards[:, CHOSEN], rewards[:, REJECTED]
    found = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
        "rewards/margins": chosen - rejected,
        "logps/chosen": logps.policy_BN[:, CHOSEN],
        "logps/rejected": logps.policy_BN[:, REJECTED],
    }
    if len(config.names) > 1:
        # Before the weight, as a run of that loss alone would log it.
        weights_B = pair_weights(logps)
        for name in config.names:
            found[f"loss/{name}"] = LOSSES[name](logps, config) * weights_B
    return found
