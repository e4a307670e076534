"""What a preference loss sees of a batch: log-probabilities, lengths, weights."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tpmm_jax.axes import CHOSEN, REJECTED

# A constant of a loss: a Python number, or an argument of a compiled program.
Scalar = float | jax.Array
# A number of each pair of a batch.
PerPair: TypeAlias = Float[Array, " B"]


class Moving(NamedTuple):
    """beta-DPO's statistics of D, part of the train state.

    Attributes:
      mean, deviation: moving averages over batches, nats, float32 scalars.
      seen: batches so far, int32; 0: the statistics start from the next one.
      seed: of the pairs that are kept, int32.
    """

    mean: jax.Array
    deviation: jax.Array
    seen: jax.Array
    seed: jax.Array


class PairLogProbs(NamedTuple):
    """Log-probabilities of a batch of pairs, nats, and what losses weigh them with.

    Attributes:
      policy_BN: sums over completion tokens, by ld_alpha's weights if there are any.
      reference_BN: the same of the reference; None in losses without one.
      length_BN: completion tokens.
      weight_B: 0 for rows that only fill the batch; None: 1 each.
      plain_BN: the policy's sums without token weights; None: policy_BN.
      wpo_BN: WPO's mean log-weights per completion; None: not weighted.
      mean_length: chosen tokens per pair over the whole batch, of which this may be a
        part; None: over these rows.
      moving: of beta-DPO, this batch included; None: not needed.
      f_prime_BN: f' of the log-ratios, see `f_prime`; None: the log-ratios themselves.
      reward_margin_B: the reward of chosen minus that of rejected, by what "madpo"
        weighs pairs with; None: not needed.
    """

    policy_BN: jax.Array
    reference_BN: jax.Array | None
    length_BN: jax.Array
    weight_B: jax.Array | None = None
    plain_BN: jax.Array | None = None
    wpo_BN: jax.Array | None = None
    mean_length: jax.Array | None = None
    moving: Moving | None = None
    f_prime_BN: jax.Array | None = None
    reward_margin_B: jax.Array | None = None

    def log_ratios_BN(self) -> jax.Array:
        """log pi(y) - log pi_ref(y); log pi(y) without a reference."""
        if self.reference_BN is None:
            return self.policy_BN
        return self.policy_BN - self.reference_BN

    def scores_BN(self) -> jax.Array:
        """f' of each log-ratio, whose difference is a margin."""
        return self.log_ratios_BN() if self.f_prime_BN is None else self.f_prime_BN

    def margin_B(self) -> jax.Array:
        """D, nats."""
        return difference(self.log_ratios_BN())

    def lengths_BN(self) -> jax.Array:
        """Completion tokens, at least 1, as log-probs' dtype."""
        return jnp.maximum(self.length_BN, 1).astype(self.policy_BN.dtype)

    def real_B(self) -> jax.Array:
        """Which rows are pairs of the batch, and not there to fill it."""
        if self.weight_B is None:
            return jnp.ones(self.policy_BN.shape[0], bool)
        return self.weight_B > 0


def difference(x_BN: jax.Array) -> jax.Array:
    """Returns chosen minus rejected [B]."""
    return x_BN[:, CHOSEN] - x_BN[:, REJECTED]


def token_weights(
    completion_mask_BNT: Int[Array, "B N T"], ld_alpha: Scalar | None
) -> Float[Array, "B N T-1"]:
    """Returns the weight of the log-prob of each next token in a completion's sum.

    1 at completion tokens, 0 elsewhere; with ld_alpha, completion tokens beyond the
    length of the pair's shorter completion weigh ld_alpha.

    Source: LD-DPO, 2409.06411.
    """
    mask_BNT = completion_mask_BNT[:, :, 1:] > 0
    if ld_alpha is None:
        return mask_BNT.astype(jnp.float32)
    place_BNT = jnp.cumsum(mask_BNT, axis=-1)
    shared_B11 = jnp.min(place_BNT[:, :, -1:], axis=1, keepdims=True)
    return jnp.where(mask_BNT, jnp.where(place_BNT <= shared_B11, 1.0, ld_alpha), 0.0)


def completion_sums(
    logp_BNT: Float[Array, "B N T"],
    completion_mask_BNT: Int[Array, "B N T+1"],
    ld_alpha: Scalar | None,
) -> Float[Array, "B N"]:
    """Returns sums of log-probs over completion tokens, nats."""
    weights_BNT = token_weights(completion_mask_BNT, ld_alpha)
    # Not a plain product: what lies outside must not count even if it is not finite.
    return jnp.sum(
        jnp.where(weights_BNT != 0, logp_BNT, 0.0) * weights_BNT.astype(logp_BNT.dtype),
        axis=-1,
    )


def wpo_log_weights(
    logp_BNT: Float[Array, "B N T"],
    mass_BNT: Float[Array, "B N T"],
    completion_mask_BNT: Int[Array, "B N T+1"],
) -> Float[Array, "B N"]:
    """Returns mean over completion tokens of log p(token) - log sum_v p(v)^2.

    Args:
      mass_BNT: log sum_v p(v)^2 of the distribution each token was drawn from.

    Source: WPO, 2406.11827 eq. 2, weights aligned to sampled tokens. No gradient.
    """
    mask_BNT = completion_mask_BNT[:, :, 1:] > 0
    aligned_BNT = jnp.where(mask_BNT, logp_BNT - mass_BNT, 0.0)
    count_BN = jnp.maximum(jnp.sum(mask_BNT, axis=-1), 1)
    return jax.lax.stop_gradient(jnp.sum(aligned_BNT, axis=-1) / count_BN)


def mean_chosen_length(
    length_BN: jax.Array, weight_B: jax.Array | None, dtype: jnp.dtype
) -> jax.Array:
    """Returns the chosen tokens per pair over the rows that count."""
    length_B = length_BN[:, CHOSEN].astype(dtype)
    if weight_B is None:
        return jnp.mean(length_B)
    weight_B = weight_B.astype(dtype)
    return jnp.sum(weight_B * length_B) / jnp.maximum(jnp.sum(weight_B), 1e-9)


def f_prime(
    ratios_BN: Float[Array, "B N"], divergence: str, alpha: Scalar
) -> Float[Array, "B N"]:
    """Returns f'(pi / pi_ref) of log-ratios; of the reverse KL they are it.

    Source: f-DPO, 2309.16240 table 1.

    >>> f"{f_prime(jnp.array([[0.5, -1.0]]), 'forward_kl', 0.5)[0, 1]:.3f}"
    '-1.718'
    """
    match divergence:
        case "forward_kl":
            return 1 - jnp.exp(-ratios_BN)
        case "js_divergence":
            return jnp.log(2.0) + jax.nn.log_sigmoid(ratios_BN)
        case "alpha_divergence":
            power = alpha - 1
            # So that float32 can hold it; as TRL does.
            return (jnp.exp(jnp.minimum(power * ratios_BN, 80.0)) - 1) / power
    return ratios_BN


def is_zero(constant: Scalar) -> bool:
    """Whether a constant is the number 0, so that what it multiplies is left out.

    False of an argument of a compiled program, whatever its value.
    """
    return isinstance(constant, float) and constant == 0


def smoothed_log_sigmoid(z: jax.Array, label_smoothing: Scalar) -> jax.Array:
    """Returns -(1 - eps) log sigma(z) - eps log sigma(-z).

    >>> f"{smoothed_log_sigmoid(jnp.array(2.0), 0.1):.3f}"
    '0.327'
    """
    if is_zero(label_smoothing):
        return -jax.nn.log_sigmoid(z)
    eps = label_smoothing
    return -(1 - eps) * jax.nn.log_sigmoid(z) - eps * jax.nn.log_sigmoid(-z)


def example_pair() -> PairLogProbs:
    """Returns log-probs of one pair, for examples: D is 3 nats.

    >>> example_pair().margin_B()
    Array([3.], dtype=float32)
    """
    return PairLogProbs(
        policy_BN=jnp.asarray([[-10.0, -14.0]]),
        reference_BN=jnp.asarray([[-11.0, -12.0]]),
        length_BN=jnp.asarray([[4, 5]]),
    )
