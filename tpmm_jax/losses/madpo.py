"""MADPO: DPO whose pairs are weighed by a reward model's margin.

h is the reward of the chosen answer minus that of the rejected one: a number of the
data, through which no gradient flows.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tpmm_jax.losses.inputs import PairLogProbs, PerPair, Scalar
from tpmm_jax.losses.pairwise import dpo
from tpmm_jax.losses.record import LOG2, Loss


def coefficient(
    size: ArrayLike, *, c_max: Scalar = 4.0, tau: Scalar = 6.907, lam: Scalar = 1.0
) -> jax.Array:
    """Returns c(|h|), by which MADPO stretches a margin; c(tau) is 1.

        c_min + (c_max - c_min) sigma(-(lam (|h| - tau) + log c_max))

    with c_min = 1 / c_max, for which the paper's ratio (c_max - 1) / (1 - c_min) is
    c_max.

    Args:
      size: |h|, any shape.
      c_max: c at margins far below tau; 1 or more, 1 gives 1 everywhere.
      tau: the |h| from which on margins are shrunk.
      lam: how steeply c falls.

    Source: 2510.05342v1.

    >>> [round(float(coefficient(h)), 3) for h in (0.0, 6.907, 20.0)]
    [3.985, 1.0, 0.25]
    """
    c_min = 1 / c_max
    place = lam * (jnp.asarray(size) - tau) + jnp.log(c_max)
    return c_min + (c_max - c_min) * jax.nn.sigmoid(-place)


def weight(
    margin: ArrayLike, *, c_max: Scalar = 4.0, tau: Scalar = 6.907, lam: Scalar = 1.0
) -> jax.Array:
    """Returns w(h), with which MADPO multiplies a pair's loss. No gradient.

        w(h) = sigma(c(|h|) h) / sigma(h) if h > -tau, else 1

    Args:
      margin: h, the reward of chosen minus that of rejected, any shape.
      c_max, tau, lam: see ``coefficient``.

    Source: 2510.05342v1.

    >>> [round(float(weight(h)), 4) for h in (0.5, 1.0, -1.0, -2.0, -8.0)]
    [1.4129, 1.3423, 0.0696, 0.0035, 1.0]
    """
    h = jax.lax.stop_gradient(jnp.asarray(margin))
    weighed = h > -tau
    # What the other branch would make of it is not asked.
    h = jnp.where(weighed, h, 0.0)
    c = coefficient(jnp.abs(h), c_max=c_max, tau=tau, lam=lam)
    ratio = jnp.exp(jax.nn.log_sigmoid(c * h) - jax.nn.log_sigmoid(h))
    return jnp.where(weighed, ratio, 1.0)


def madpo(
    logps: PairLogProbs, *, beta: Scalar, c_max: Scalar, tau: Scalar, lam: Scalar
) -> PerPair:
    """-w(h) log sigma(z); the weights are not renormalised.

    Source: 2510.05342v1.

    >>> logps = example_pair()._replace(reward_margin_B=jnp.asarray([1.0]))
    >>> f"{madpo(logps, beta=0.5, c_max=4.0, tau=6.907, lam=1.0)[0]:.3f}"
    '0.270'
    """
    assert logps.reward_margin_B is not None, "madpo needs margins"
    weight_B = weight(logps.reward_margin_B, c_max=c_max, tau=tau, lam=lam)
    return weight_B * dpo(logps, beta=beta)


def weight_metrics(
    logps: PairLogProbs, *, c_max: Scalar, tau: Scalar, lam: Scalar
) -> dict[str, PerPair]:
    """Returns what MADPO does with each pair: its weight, |h|, whether |h| > tau."""
    assert logps.reward_margin_B is not None
    size_B = jnp.abs(logps.reward_margin_B)
    return {
        "madpo/weight": weight(logps.reward_margin_B, c_max=c_max, tau=tau, lam=lam),
        "madpo/margin_size": size_B,
        "madpo/above_tau": (size_B > tau).astype(jnp.float32),
    }


MADPO = {
    # The value at zero is that of margins 0, of which every weight is 1.
    "madpo": Loss(
        madpo, "pairwise", at_zero=LOG2, metrics=weight_metrics, needs_margins=True
    ),
}
