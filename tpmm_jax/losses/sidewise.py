"""Losses that judge chosen and rejected each by its own reward.

r_w, r_l = beta (log pi - log pi_ref) of chosen and rejected, nats.
"""

import jax

from tpmm_jax.axes import CHOSEN, REJECTED
from tpmm_jax.losses.inputs import PairLogProbs, PerPair, Scalar
from tpmm_jax.losses.record import LOG2, Loss


def _rewards(logps: PairLogProbs, beta: Scalar) -> tuple[jax.Array, jax.Array]:
    rewards_BN = beta * logps.log_ratios_BN()
    return rewards_BN[:, CHOSEN], rewards_BN[:, REJECTED]


def nca(logps: PairLogProbs, *, beta: Scalar) -> PerPair:
    """-log sigma(r_w) - (log sigma(-r_w) + log sigma(-r_l)) / 2.

    Source: 2402.05369, for two answers with rewards 1 and 0.

    >>> f"{nca(example_pair(), beta=0.5)[0]:.3f}"
    '1.118'
    """
    won, lost = _rewards(logps, beta)
    both = jax.nn.log_sigmoid(-won) + jax.nn.log_sigmoid(-lost)
    return -jax.nn.log_sigmoid(won) - 0.5 * both


def bco(logps: PairLogProbs, *, beta: Scalar) -> PerPair:
    """-log sigma(r_w) - log sigma(-r_l).

    Source: 2404.04656 without reward shift, as in TRL's bco_pair, which keeps no
    running mean.

    >>> f"{bco(example_pair(), beta=0.5)[0]:.3f}"
    '0.787'
    """
    won, lost = _rewards(logps, beta)
    return -jax.nn.log_sigmoid(won) - jax.nn.log_sigmoid(-lost)


def sppo(logps: PairLogProbs, *, beta: Scalar) -> PerPair:
    """(log-ratio_w - 1/(2 beta))^2 + (log-ratio_l + 1/(2 beta))^2.

    Source: 2405.00675 eq. 4.7 with win probabilities 1 and 0 (TRL's sppo_hard).

    >>> f"{sppo(example_pair(), beta=0.25)[0]:.3f}"
    '1.000'
    """
    ratios_BN, half = logps.log_ratios_BN(), 0.5 / beta
    return (ratios_BN[:, CHOSEN] - half) ** 2 + (ratios_BN[:, REJECTED] + half) ** 2


def apo_zero(logps: PairLogProbs, *, beta: Scalar) -> PerPair:
    """1 - sigma(r_w) + sigma(r_l): chosen up, rejected down.

    Source: 2408.06266 eq. 7.

    >>> f"{apo_zero(example_pair(), beta=0.5)[0]:.3f}"
    '0.646'
    """
    won, lost = _rewards(logps, beta)
    return jax.nn.sigmoid(-won) + jax.nn.sigmoid(lost)


def apo_down(logps: PairLogProbs, *, beta: Scalar) -> PerPair:
    """sigma(r_w) + 1 - sigma(r_w - r_l): chosen down, rejected further down.

    Source: 2408.06266 eq. 8.

    >>> f"{apo_down(example_pair(), beta=0.5)[0]:.3f}"
    '0.805'
    """
    won, lost = _rewards(logps, beta)
    return jax.nn.sigmoid(won) + jax.nn.sigmoid(lost - won)


SIDEWISE = {
    "nca": Loss(nca, "sidewise", at_zero=2 * LOG2, trl_name="nca_pair"),
    "bco": Loss(bco, "sidewise", at_zero=2 * LOG2, trl_name="bco_pair"),
    "sppo": Loss(
        sppo,
        "sidewise",
        at_zero=lambda c: 1 / (2 * c["beta"] ** 2),
        trl_name="sppo_hard",
    ),
    "apo_zero": Loss(apo_zero, "sidewise", at_zero=1.0),
    "apo_down": Loss(apo_down, "sidewise", at_zero=1.0),
}
