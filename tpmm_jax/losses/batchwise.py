"""Losses that couple the pairs of a batch: optimal transport, beta-DPO, Dr. DPO.

A row that only fills the batch takes no part.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tpmm_jax.axes import CHOSEN, REJECTED
from tpmm_jax.losses.inputs import (
    Moving,
    PairLogProbs,
    PerPair,
    Scalar,
    difference,
    smoothed_log_sigmoid,
)
from tpmm_jax.losses.pairwise import dpo
from tpmm_jax.losses.record import LOG2, Loss

# Lower bounds of beta and of the deviation, of the authors' code.
MIN_BETA, MIN_DEVIATION = 1e-3, 1e-6


def _sorted_loss(
    logps: PairLogProbs,
    upper_B: jax.Array,
    lower_B: jax.Array,
    beta: Scalar,
    label_smoothing: Scalar,
) -> PerPair:
    """The loss of equal ranks' difference, at the places of ``upper_B``."""
    real_B = logps.real_B()
    by_upper = jnp.argsort(jnp.where(real_B, upper_B, jnp.inf))
    by_lower = jnp.argsort(jnp.where(real_B, lower_B, jnp.inf))
    loss_B = smoothed_log_sigmoid(
        beta * (upper_B[by_upper] - lower_B[by_lower]), label_smoothing
    )
    return jnp.zeros_like(upper_B).at[by_upper].set(loss_B)


def aot(logps: PairLogProbs, *, beta: Scalar, label_smoothing: Scalar) -> PerPair:
    """-log sigma(beta (policy margin - reference margin)) of margins of equal rank.

    Both are sorted within the batch; label smoothing as in cdpo.

    Source: 2406.05882 alg. 1, paired.

    >>> f"{aot(example_pair(), beta=0.5, label_smoothing=0.1)[0]:.3f}"
    '0.351'
    """
    assert logps.reference_BN is not None
    policy_B, reference_B = difference(logps.policy_BN), difference(logps.reference_BN)
    return _sorted_loss(logps, policy_B, reference_B, beta, label_smoothing)


def aot_unpaired(
    logps: PairLogProbs, *, beta: Scalar, label_smoothing: Scalar
) -> PerPair:
    """-log sigma(beta (chosen - rejected)) of log-ratios of equal rank.

    Source: 2406.05882 alg. 1, unpaired.

    >>> f"{aot_unpaired(example_pair(), beta=0.5, label_smoothing=0.1)[0]:.3f}"
    '0.351'
    """
    ratios_BN = logps.log_ratios_BN()
    chosen_B, rejected_B = ratios_BN[:, CHOSEN], ratios_BN[:, REJECTED]
    return _sorted_loss(logps, chosen_B, rejected_B, beta, label_smoothing)


def beta_dpo(
    logps: PairLogProbs, *, beta: Scalar, beta_gain: Scalar, beta_keep: Scalar
) -> PerPair:
    """-log sigma(beta_used D) of the pairs that are kept, scaled to be their mean.

    Source: 2407.08639 and its code, see `select_pairs`.

    >>> moving = update_moving(init_moving(0), example_pair(), beta_momentum=0.9)
    >>> logps = example_pair()._replace(moving=moving)
    >>> f"{beta_dpo(logps, beta=0.5, beta_gain=0.6, beta_keep=0.8)[0]:.3f}"
    '0.201'
    """
    kept_B, beta_used = select_pairs(
        logps, beta=beta, beta_gain=beta_gain, beta_keep=beta_keep
    )
    real_B = logps.real_B()
    share = jnp.sum(real_B) / jnp.maximum(jnp.sum(kept_B), 1)
    loss_B = -jax.nn.log_sigmoid(beta_used * logps.margin_B())
    return jnp.where(kept_B, loss_B * share, 0.0)


def dr_dpo(logps: PairLogProbs, *, beta: Scalar, dr_beta: Scalar) -> PerPair:
    """-b' log mean exp(-l / b') of the batch's DPO losses l, for each of its pairs.

    Pairs of a large loss, which may be labelled wrongly, count less; towards DPO's mean
    as b' grows.

    Source: 2407.07880 and its code, whose default of b' is ours.

    >>> f"{dr_dpo(example_pair(), beta=0.5, dr_beta=1.0)[0]:.3f}"
    '0.201'
    """
    loss_B, real_B = dpo(logps, beta=beta), logps.real_B()
    count = jnp.maximum(jnp.sum(real_B), 1).astype(loss_B.dtype)
    log_sum = jax.nn.logsumexp(jnp.where(real_B, -loss_B / dr_beta, -jnp.inf))
    return jnp.where(real_B, -dr_beta * (log_sum - jnp.log(count)), 0.0)


def init_moving(seed: int) -> Moving:
    """Returns statistics that start from the first batch."""
    zero = jnp.zeros((), jnp.float32)
    seen, number = jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.int32)
    return Moving(mean=zero, deviation=zero, seen=seen, seed=number)


def update_moving(
    moving: Moving, logps: PairLogProbs, *, beta_momentum: Scalar
) -> Moving:
    """Returns the moving mean and deviation of D with this batch taken in.

    m <- momentum m + (1 - momentum) mean(D), s likewise with the sample deviation; the
    first batch's own to begin with; s >= 1e-6.
    """
    margin_B, real_B = jax.lax.stop_gradient(logps.margin_B()), logps.real_B()
    count = jnp.maximum(jnp.sum(real_B), 1)
    mean = jnp.sum(jnp.where(real_B, margin_B, 0.0)) / count
    square = jnp.sum(jnp.where(real_B, (margin_B - mean) ** 2, 0.0))
    deviation = jnp.sqrt(square / jnp.maximum(count - 1, 1))
    momentum = jnp.where(moving.seen == 0, 0.0, beta_momentum)
    mean = momentum * moving.mean + (1 - momentum) * mean
    deviation = momentum * moving.deviation + (1 - momentum) * deviation
    deviation = jnp.maximum(deviation, MIN_DEVIATION)
    return Moving(mean, deviation, moving.seen + 1, moving.seed)


def select_pairs(
    logps: PairLogProbs, *, beta: Scalar, beta_gain: Scalar, beta_keep: Scalar
) -> tuple[Bool[Array, " B"], Float[Array, ""]]:
    """Returns which pairs are kept, and beta_used.

    A share of the pairs is drawn without replacement with probabilities in proportion
    to exp(-((D - m) / s)^2 / 2); beta_used = max(1e-3, beta (1 + a (mean of the kept D
    - m))).
    """
    assert logps.moving is not None
    moving, real_B = logps.moving, logps.real_B()
    margin_B = jax.lax.stop_gradient(logps.margin_B())
    log_p_B = -(((margin_B - moving.mean) / moving.deviation) ** 2) / 2
    key = jax.random.fold_in(jax.random.key(moving.seed), moving.seen)
    # The largest of log p + Gumbel noise: sampling without replacement.
    noisy_B = log_p_B + jax.random.gumbel(key, log_p_B.shape, log_p_B.dtype)
    rank_B = jnp.argsort(jnp.argsort(-jnp.where(real_B, noisy_B, -jnp.inf)))
    count = jnp.sum(real_B)
    # The small number keeps 0.8 * 5 from being 3.9999998.
    number = jnp.maximum(jnp.floor(beta_keep * count + 1e-4), 1)
    kept_B = (rank_B < number) & real_B
    mean = jnp.sum(jnp.where(kept_B, margin_B, 0.0)) / jnp.maximum(jnp.sum(kept_B), 1)
    beta_used = beta * (1 + beta_gain * (mean - moving.mean))
    return kept_B, jnp.maximum(beta_used, MIN_BETA)


def moving_metrics(
    logps: PairLogProbs, *, beta: Scalar, beta_gain: Scalar, beta_keep: Scalar
) -> dict[str, jax.Array]:
    """Returns what beta-DPO did with the batch; "clamped" is 1 where beta hit 1e-3."""
    assert logps.moving is not None
    _, beta_used = select_pairs(
        logps, beta=beta, beta_gain=beta_gain, beta_keep=beta_keep
    )
    return {
        "beta_dpo/beta": beta_used,
        "beta_dpo/clamped": (beta_used <= MIN_BETA).astype(jnp.float32),
        "beta_dpo/mean": logps.moving.mean,
        "beta_dpo/deviation": logps.moving.deviation,
    }


BATCHWISE = {
    "aot": Loss(aot, "batchwise", at_zero=LOG2),
    "aot_unpaired": Loss(aot_unpaired, "batchwise", at_zero=LOG2),
    "beta_dpo": Loss(
        beta_dpo, "batchwise", at_zero=LOG2, carried_reads=("beta_momentum",)
    ),
    "dr_dpo": Loss(dr_dpo, "batchwise", at_zero=LOG2),
}
