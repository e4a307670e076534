"""Losses without a reference: log-probabilities of the policy alone.

logp is the sum over completion tokens in nats, avg its mean over them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tpmm_jax.axes import CHOSEN
from tpmm_jax.losses.config import LossConfig
from tpmm_jax.losses.inputs import (
    PairLogProbs,
    difference,
    mean_chosen_length,
    smoothed_log_sigmoid,
)


def _plain_BN(logps: PairLogProbs) -> jax.Array:
    return logps.policy_BN if logps.plain_BN is None else logps.plain_BN


def average_BN(logps: PairLogProbs) -> Float[Array, "B N"]:
    """Returns the mean log-prob of a completion's tokens, nats."""
    return logps.policy_BN / logps.lengths_BN()


def sft(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """-logp_w over the batch's mean length of chosen.

    Its mean over pairs is the mean over all chosen tokens of the batch.

    Source: next-token likelihood; as TRL's "sft" term.
    """
    length = logps.mean_length
    if length is None:
        length = mean_chosen_length(
            logps.length_BN, logps.weight_B, logps.policy_BN.dtype
        )
    return -_plain_BN(logps)[:, CHOSEN] / jnp.maximum(length, 1)


def simpo(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """-log sigma(beta (avg_w - avg_l) - gamma), gamma = beta gamma_beta_ratio.

    Source: 2405.14734 eq. 6.
    """
    margin_B = difference(average_BN(logps)) - config.gamma_beta_ratio
    return smoothed_log_sigmoid(config.beta * margin_B, config)


def alphapo_rewards_BN(logps: PairLogProbs, config: LossConfig) -> jax.Array:
    """Returns (1 - exp(-alpha avg)) / alpha."""
    alpha = config.alphapo_alpha
    return (1 - jnp.exp(-alpha * average_BN(logps))) / alpha


def alphapo(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """SimPO's loss of rewards (1 - exp(-alpha avg)) / alpha. Source: 2501.03884."""
    margin_B = difference(alphapo_rewards_BN(logps, config)) - config.gamma_beta_ratio
    return smoothed_log_sigmoid(config.beta * margin_B, config)


def orpo(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """sft - beta log sigma(log odds_w - log odds_l), odds = p / (1 - p), p = exp(avg).

    Source: 2403.07691 eq. 6; the likelihood is of completion tokens.
    """
    # A probability of 1 has no odds: p is held below 1 - 1e-7.
    avg_BN = jnp.minimum(average_BN(logps), -1e-7)
    log_odds_B = difference(avg_BN - _log1mexp(avg_BN))
    return sft(logps, config) - config.beta * jax.nn.log_sigmoid(log_odds_B)


def _log1mexp(x: jax.Array) -> jax.Array:
    """Returns log(1 - exp(x)) for x < 0, exact at both ends."""
    near = x > -0.6931471805599453
    # Each branch sees a harmless value where it is not taken: no NaN in its gradient.
    small = jnp.log(-jnp.expm1(jnp.where(near, x, -0.1)))
    large = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x)))
    return jnp.where(near, small, large)


def cpo(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """-log sigma(beta (logp_w - logp_l)) + cpo_alpha sft. Source: 2401.08417."""
    preference = smoothed_log_sigmoid(config.beta * difference(logps.policy_BN), config)
    return preference + config.cpo_alpha * sft(logps, config)


def cpo_hinge(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """max(0, 1 - beta (logp_w - logp_l)) + cpo_alpha sft.

    Source: SLiC-HF, 2305.10425; as TRL's CPO trainer with loss type hinge.
    """
    preference = jax.nn.relu(1 - config.beta * difference(logps.policy_BN))
    return preference + config.cpo_alpha * sft(logps, config)


def cpo_ipo(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """(avg_w - avg_l - 1/(2 beta))^2 + cpo_alpha sft.

    Source: 2310.12036 eq. 17 without a reference; as TRL's CPO trainer with type ipo.
    """
    preference = (difference(average_BN(logps)) - 1 / (2 * config.beta)) ** 2
    return preference + config.cpo_alpha * sft(logps, config)
