"""Losses that judge chosen and rejected each by its own reward.

r_w, r_l = beta (log pi - log pi_ref) of chosen and rejected, nats.
"""

import jax
from jaxtyping import Array, Float

from tpmm_jax.axes import CHOSEN, REJECTED
from tpmm_jax.losses.config import LossConfig
from tpmm_jax.losses.inputs import PairLogProbs


def _rewards(logps: PairLogProbs, config: LossConfig) -> tuple[jax.Array, jax.Array]:
    rewards_BN = config.beta * logps.log_ratios_BN()
    return rewards_BN[:, CHOSEN], rewards_BN[:, REJECTED]


def nca(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """-log sigma(r_w) - (log sigma(-r_w) + log sigma(-r_l)) / 2.

    Source: 2402.05369, for two answers with rewards 1 and 0.
    """
    won, lost = _rewards(logps, config)
    both = jax.nn.log_sigmoid(-won) + jax.nn.log_sigmoid(-lost)
    return -jax.nn.log_sigmoid(won) - 0.5 * both


def bco(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """-log sigma(r_w) - log sigma(-r_l).

    Source: 2404.04656 without reward shift, as in TRL's bco_pair, which keeps no
    running mean.
    """
    won, lost = _rewards(logps, config)
    return -jax.nn.log_sigmoid(won) - jax.nn.log_sigmoid(-lost)


def sppo(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """(log-ratio_w - 1/(2 beta))^2 + (log-ratio_l + 1/(2 beta))^2.

    Source: 2405.00675 eq. 4.7 with win probabilities 1 and 0 (TRL's sppo_hard).
    """
    ratios_BN, half = logps.log_ratios_BN(), 0.5 / config.beta
    return (ratios_BN[:, CHOSEN] - half) ** 2 + (ratios_BN[:, REJECTED] + half) ** 2


def apo_zero(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """1 - sigma(r_w) + sigma(r_l): chosen up, rejected down.

    Source: 2408.06266 eq. 7.
    """
    won, lost = _rewards(logps, config)
    return jax.nn.sigmoid(-won) + jax.nn.sigmoid(lost)


def apo_down(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """sigma(r_w) + 1 - sigma(r_w - r_l): chosen down, rejected further down.

    Source: 2408.06266 eq. 8.
    """
    won, lost = _rewards(logps, config)
    return jax.nn.sigmoid(won) + jax.nn.sigmoid(lost - won)
