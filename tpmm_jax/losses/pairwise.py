"""Losses of a pair's margin z = beta D: DPO and what follows its form.

D = f'(chosen) - f'(rejected), of log-ratios to the reference in nats, summed over
completion tokens; f' is the identity but for other f-divergences.
"""

import math

import jax
import jax.numpy as jnp

from tpmm_jax.losses.inputs import (
    PairLogProbs,
    PerPair,
    Scalar,
    difference,
    smoothed_log_sigmoid,
)
from tpmm_jax.losses.record import LOG2, Loss


def _z(logps: PairLogProbs, beta: Scalar) -> PerPair:
    return beta * difference(logps.scores_BN())


def _mean_difference(logps: PairLogProbs) -> PerPair:
    """D of means over tokens."""
    return difference(logps.scores_BN() / logps.lengths_BN())


def dpo(logps: PairLogProbs, *, beta: Scalar) -> PerPair:
    """-log sigma(z). Source: 2305.18290 eq. 7.

    >>> f"{dpo(example_pair(), beta=0.5)[0]:.3f}"
    '0.201'
    """
    return -jax.nn.log_sigmoid(_z(logps, beta))


def cdpo(logps: PairLogProbs, *, beta: Scalar, label_smoothing: Scalar) -> PerPair:
    """-(1 - eps) log sigma(z) - eps log sigma(-z).

    Source: label smoothing of DPO (Mitchell 2023, "A note on DPO with noisy
    preferences").

    >>> f"{cdpo(example_pair(), beta=0.5, label_smoothing=0.1)[0]:.3f}"
    '0.351'
    """
    return smoothed_log_sigmoid(_z(logps, beta), label_smoothing)


def robust(logps: PairLogProbs, *, beta: Scalar, label_smoothing: Scalar) -> PerPair:
    """[-(1 - eps) log sigma(z) + eps log sigma(-z)] / (1 - 2 eps); unbounded below.

    Source: 2403.00409 eq. 12.

    >>> f"{robust(example_pair(), beta=0.5, label_smoothing=0.1)[0]:.3f}"
    '0.014'
    """
    z, eps = _z(logps, beta), label_smoothing
    loss = -(1 - eps) * jax.nn.log_sigmoid(z) + eps * jax.nn.log_sigmoid(-z)
    return loss / (1 - 2 * eps)


def ipo(logps: PairLogProbs, *, beta: Scalar, length_normalized: bool) -> PerPair:
    """(D - 1 / (2 beta))^2, D of means over tokens or of sums.

    Source: 2310.12036 eq. 17; means as the authors told TRL's.

    >>> f"{ipo(example_pair(), beta=0.5, length_normalized=False)[0]:.3f}"
    '4.000'
    """
    if length_normalized:
        margin_B = _mean_difference(logps)
    else:
        margin_B = difference(logps.scores_BN())
    return (margin_B - 1 / (2 * beta)) ** 2


def hinge(logps: PairLogProbs, *, beta: Scalar) -> PerPair:
    """max(0, 1 - z). Source: 2305.10425 (SLiC), as a DPO variant.

    >>> f"{hinge(example_pair(), beta=0.25)[0]:.3f}"
    '0.250'
    """
    return jax.nn.relu(1 - _z(logps, beta))


def sigmoid_norm(logps: PairLogProbs, *, beta: Scalar) -> PerPair:
    """-log sigma(beta D), D of means over tokens.

    Source: length-normalised DPO of Tulu 3, 2411.15124.

    >>> f"{sigmoid_norm(example_pair(), beta=2.0)[0]:.3f}"
    '0.241'
    """
    return -jax.nn.log_sigmoid(beta * _mean_difference(logps))


def exo(logps: PairLogProbs, *, beta: Scalar, label_smoothing: Scalar) -> PerPair:
    """KL((sigma(z), sigma(-z)) || (1 - eps, eps)). Source: 2402.00856 eq. 16.

    >>> f"{exo(example_pair(), beta=0.5, label_smoothing=0.1)[0]:.3f}"
    '0.031'
    """
    z, eps = _z(logps, beta), label_smoothing
    won = jax.nn.sigmoid(z) * (jax.nn.log_sigmoid(z) - jnp.log1p(-eps))
    return won + jax.nn.sigmoid(-z) * (jax.nn.log_sigmoid(-z) - jnp.log(eps))


def discopop(logps: PairLogProbs, *, beta: Scalar, discopop_tau: Scalar) -> PerPair:
    """-(1 - m) log sigma(z) + m exp(-z), m = sigma(z / tau).

    Source: 2406.08414 eq. 5 (log-ratio modulated loss).

    >>> f"{discopop(example_pair(), beta=0.5, discopop_tau=0.05)[0]:.3f}"
    '0.223'
    """
    z = _z(logps, beta)
    log_m = jax.nn.log_sigmoid(z / discopop_tau)
    # m exp(-z) in one exponent: 0 times infinity would be NaN.
    return -jax.nn.sigmoid(-z / discopop_tau) * jax.nn.log_sigmoid(z) + jnp.exp(
        log_m - z
    )


def _exo_at_zero(eps: float) -> float:
    return -LOG2 - (math.log(eps) + math.log1p(-eps)) / 2


PAIRWISE = {
    "dpo": Loss(dpo, "pairwise", at_zero=LOG2, trl_name="sigmoid"),
    "cdpo": Loss(cdpo, "pairwise", at_zero=LOG2, usual={"label_smoothing": "0.1"}),
    "robust": Loss(robust, "pairwise", at_zero=LOG2, usual={"label_smoothing": "0.1"}),
    "ipo": Loss(ipo, "pairwise", at_zero=lambda c: 1 / (4 * c["beta"] ** 2)),
    "hinge": Loss(hinge, "pairwise", at_zero=1.0),
    "sigmoid_norm": Loss(sigmoid_norm, "pairwise", at_zero=LOG2),
    "exo": Loss(
        exo,
        "pairwise",
        at_zero=lambda c: _exo_at_zero(c["label_smoothing"]),
        usual={"label_smoothing": "1e-3"},
        trl_name="exo_pair",
    ),
    "discopop": Loss(discopop, "pairwise", at_zero=(LOG2 + 1) / 2),
}
