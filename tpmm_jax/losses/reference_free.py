"""Losses without a reference: log-probabilities of the policy alone.

logp is the sum over completion tokens in nats, avg its mean over them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tpmm_jax.axes import CHOSEN
from tpmm_jax.losses.inputs import (
    PairLogProbs,
    PerPair,
    Scalar,
    difference,
    is_zero,
    mean_chosen_length,
    smoothed_log_sigmoid,
)
from tpmm_jax.losses.record import Loss


def average_BN(logps: PairLogProbs) -> Float[Array, "B N"]:
    """Returns the mean log-prob of a completion's tokens, nats."""
    return logps.policy_BN / logps.lengths_BN()


def sft(logps: PairLogProbs) -> PerPair:
    """-logp_w over the batch's mean length of chosen.

    Its mean over pairs is the mean over all chosen tokens of the batch.

    Source: next-token likelihood; as TRL's "sft" term.

    >>> f"{sft(example_pair())[0]:.3f}"
    '2.500'
    """
    length = logps.mean_length
    if length is None:
        length = mean_chosen_length(
            logps.length_BN, logps.weight_B, logps.policy_BN.dtype
        )
    plain_BN = logps.policy_BN if logps.plain_BN is None else logps.plain_BN
    return -plain_BN[:, CHOSEN] / jnp.maximum(length, 1)


def simpo(
    logps: PairLogProbs,
    *,
    beta: Scalar,
    label_smoothing: Scalar,
    gamma_beta_ratio: Scalar,
) -> PerPair:
    """-log sigma(beta (avg_w - avg_l) - gamma), gamma = beta gamma_beta_ratio.

    Source: 2405.14734 eq. 6.

    >>> constants = dict(beta=2.0, label_smoothing=0.0, gamma_beta_ratio=0.25)
    >>> f"{simpo(example_pair(), **constants)[0]:.3f}"
    '0.644'
    """
    margin_B = difference(average_BN(logps)) - gamma_beta_ratio
    return smoothed_log_sigmoid(beta * margin_B, label_smoothing)


def alphapo_rewards_BN(
    logps: PairLogProbs, *, alphapo_alpha: Scalar
) -> Float[Array, "B N"]:
    """Returns (1 - exp(-alpha avg)) / alpha."""
    return (1 - jnp.exp(-alphapo_alpha * average_BN(logps))) / alphapo_alpha


def alphapo(
    logps: PairLogProbs,
    *,
    beta: Scalar,
    label_smoothing: Scalar,
    gamma_beta_ratio: Scalar,
    alphapo_alpha: Scalar,
) -> PerPair:
    """SimPO's loss of rewards (1 - exp(-alpha avg)) / alpha. Source: 2501.03884.

    >>> constants = dict(beta=2.0, label_smoothing=0.0, gamma_beta_ratio=0.25)
    >>> f"{alphapo(example_pair(), **constants, alphapo_alpha=0.25)[0]:.3f}"
    '0.415'
    """
    rewards_BN = alphapo_rewards_BN(logps, alphapo_alpha=alphapo_alpha)
    margin_B = difference(rewards_BN) - gamma_beta_ratio
    return smoothed_log_sigmoid(beta * margin_B, label_smoothing)


def orpo(logps: PairLogProbs, *, beta: Scalar) -> PerPair:
    """sft - beta log sigma(log odds_w - log odds_l), odds = p / (1 - p), p = exp(avg).

    Source: 2403.07691 eq. 6; the likelihood is of completion tokens.

    >>> f"{orpo(example_pair(), beta=0.1)[0]:.3f}"
    '2.554'
    """
    # A probability of 1 has no odds: p is held below 1 - 1e-7.
    avg_BN = jnp.minimum(average_BN(logps), -1e-7)
    log_odds_B = difference(avg_BN - _log1mexp(avg_BN))
    return sft(logps) - beta * jax.nn.log_sigmoid(log_odds_B)


def _log1mexp(x: jax.Array) -> jax.Array:
    """Returns log(1 - exp(x)) for x < 0, exact at both ends."""
    near = x > -0.6931471805599453
    # Each branch sees a harmless value where it is not taken: no NaN in its gradient.
    small = jnp.log(-jnp.expm1(jnp.where(near, x, -0.1)))
    large = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x)))
    return jnp.where(near, small, large)


def _add_likelihood(
    preference_B: jax.Array, logps: PairLogProbs, cpo_alpha: Scalar
) -> PerPair:
    return preference_B if is_zero(cpo_alpha) else preference_B + cpo_alpha * sft(logps)


def cpo(
    logps: PairLogProbs, *, beta: Scalar, label_smoothing: Scalar, cpo_alpha: Scalar
) -> PerPair:
    """-log sigma(beta (logp_w - logp_l)) + cpo_alpha sft. Source: 2401.08417.

    >>> f"{cpo(example_pair(), beta=0.1, label_smoothing=0.0, cpo_alpha=1.0)[0]:.3f}"
    '3.013'
    """
    z = beta * difference(logps.policy_BN)
    return _add_likelihood(smoothed_log_sigmoid(z, label_smoothing), logps, cpo_alpha)


def cpo_hinge(logps: PairLogProbs, *, beta: Scalar, cpo_alpha: Scalar) -> PerPair:
    """max(0, 1 - beta (logp_w - logp_l)) + cpo_alpha sft.

    Source: SLiC-HF, 2305.10425; as TRL's CPO trainer with loss type hinge.

    >>> f"{cpo_hinge(example_pair(), beta=0.1, cpo_alpha=0.0)[0]:.3f}"
    '0.600'
    """
    preference_B = jax.nn.relu(1 - beta * difference(logps.policy_BN))
    return _add_likelihood(preference_B, logps, cpo_alpha)


def cpo_ipo(logps: PairLogProbs, *, beta: Scalar, cpo_alpha: Scalar) -> PerPair:
    """(avg_w - avg_l - 1/(2 beta))^2 + cpo_alpha sft.

    Source: 2310.12036 eq. 17 without a reference; as TRL's CPO trainer with type ipo.

    >>> f"{cpo_ipo(example_pair(), beta=0.5, cpo_alpha=0.0)[0]:.3f}"
    '0.490'
    """
    preference_B = (difference(average_BN(logps)) - 1 / (2 * beta)) ** 2
    return _add_likelihood(preference_B, logps, cpo_alpha)


# Of means over tokens, where the default beta is far too small.
_OF_MEANS = {"beta": "2.0"}

REFERENCE_FREE = {
    "sft": Loss(sft, "likelihood"),
    "simpo": Loss(simpo, "reference_free", rewards=average_BN, usual=_OF_MEANS),
    "alphapo": Loss(
        alphapo, "reference_free", rewards=alphapo_rewards_BN, usual=_OF_MEANS
    ),
    "orpo": Loss(orpo, "reference_free", rewards=average_BN),
    "cpo": Loss(cpo, "reference_free"),
    "cpo_hinge": Loss(cpo_hinge, "reference_free"),
    "cpo_ipo": Loss(cpo_ipo, "reference_free", rewards=average_BN),
}
