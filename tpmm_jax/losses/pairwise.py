"""Losses of a pair's margin z = beta D: DPO and what follows its form.

D = f'(chosen) - f'(rejected), of log-ratios to the reference in nats, summed over
completion tokens; f' is the identity but for other f-divergences.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tpmm_jax.losses.config import LossConfig
from tpmm_jax.losses.inputs import (
    PairLogProbs,
    difference,
    scores_BN,
    smoothed_log_sigmoid,
)


def _z(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    return config.beta * difference(scores_BN(logps, config))


def _mean_difference(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """D of scores a token."""
    return difference(scores_BN(logps, config) / logps.lengths_BN())


def dpo(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """-log sigma(z). Source: 2305.18290 eq. 7."""
    return -jax.nn.log_sigmoid(_z(logps, config))


def cdpo(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """-(1 - eps) log sigma(z) - eps log sigma(-z).

    Source: label smoothing of DPO (Mitchell 2023, "A note on DPO with noisy
    preferences").
    """
    return smoothed_log_sigmoid(_z(logps, config), config)


def robust(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """[-(1 - eps) log sigma(z) + eps log sigma(-z)] / (1 - 2 eps); unbounded below.

    Source: 2403.00409 eq. 12.
    """
    z, eps = _z(logps, config), config.label_smoothing
    loss = -(1 - eps) * jax.nn.log_sigmoid(z) + eps * jax.nn.log_sigmoid(-z)
    return loss / (1 - 2 * eps)


def ipo(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """(D - 1 / (2 beta))^2, D of means over tokens or of sums.

    Source: 2310.12036 eq. 17; means as the authors told TRL's.
    """
    if config.length_normalized:
        margin_B = _mean_difference(logps, config)
    else:
        margin_B = difference(scores_BN(logps, config))
    return (margin_B - 1 / (2 * config.beta)) ** 2


def hinge(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """max(0, 1 - z). Source: 2305.10425 (SLiC), as a DPO variant."""
    return jax.nn.relu(1 - _z(logps, config))


def sigmoid_norm(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """-log sigma(beta D), D of means over tokens.

    Source: length-normalised DPO of Tulu 3, 2411.15124.
    """
    return -jax.nn.log_sigmoid(config.beta * _mean_difference(logps, config))


def exo(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """KL((sigma(z), sigma(-z)) || (1 - eps, eps)). Source: 2402.00856 eq. 16."""
    z, eps = _z(logps, config), config.label_smoothing
    won = jax.nn.sigmoid(z) * (jax.nn.log_sigmoid(z) - jnp.log1p(-eps))
    return won + jax.nn.sigmoid(-z) * (jax.nn.log_sigmoid(-z) - jnp.log(eps))


def discopop(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """-(1 - m) log sigma(z) + m exp(-z), m = sigma(z / tau).

    Source: 2406.08414 eq. 5 (log-ratio modulated loss).
    """
    z = _z(logps, config)
    log_m = jax.nn.log_sigmoid(z / config.discopop_tau)
    # m exp(-z) in one exponent: 0 times infinity would be no number.
    return -jax.nn.sigmoid(-z / config.discopop_tau) * jax.nn.log_sigmoid(z) + jnp.exp(
        log_m - z
    )
