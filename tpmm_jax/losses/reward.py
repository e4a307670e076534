"""The Bradley-Terry loss, which trains reward models."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tpmm_jax.axes import CHOSEN, REJECTED, Params
from tpmm_jax.errors import BadInput
from tpmm_jax.losses.gradients import Batch, LossFn, Metrics
from tpmm_jax.losses.inputs import PerPair, difference, smoothed_log_sigmoid
from tpmm_jax.mesh import BATCH, constrain
from tpmm_jax.models import Adapted, Decoder, from_mask


@dataclass(frozen=True, kw_only=True)
class RewardLossConfig:
    """How a reward model learns from pairs.

    Attributes:
      use_margins: whether a pair's margin is subtracted from its difference of rewards.
      center_rewards_coefficient: weight of mean((r_chosen + r_rejected)^2), which keeps
        rewards around 0; 0.01 is usual, 0 leaves it out.
      label_smoothing: assumed share of flipped labels.
    """

    use_margins: bool = False
    center_rewards_coefficient: float = 0.0
    label_smoothing: float = 0.0

    def validate(self) -> None:
        """Raises BadInput for a value out of range."""
        coefficient, eps = self.center_rewards_coefficient, self.label_smoothing
        if not 0 <= coefficient < float("inf"):
            raise BadInput(
                f"loss.center_rewards_coefficient is {coefficient}; use 0 or more "
                "(0.01 is usual)"
            )
        if not 0 <= eps < 0.5:
            raise BadInput(
                f"loss.label_smoothing is {eps}; use at least 0 and below 0.5"
            )


def bradley_terry(
    rewards_BN: Float[Array, "B N"], margin_B: PerPair, config: RewardLossConfig
) -> PerPair:
    """Returns each pair's loss.

        -(1 - eps) log sigma(z) - eps log sigma(-z) + c (r_w + r_l)^2,
        z = r_w - r_l - margin

    Args:
      rewards_BN: float32.
      margin_B: what a chosen answer is to lead by; read with use_margins alone.

    Source: Llama 2 (2307.09288) eq. 2 for the margin; 2312.09244 for the centring term.

    >>> rewards_BN, margin_B = jnp.asarray([[2.0, 1.0]]), jnp.asarray([0.5])
    >>> config = RewardLossConfig(use_margins=True, center_rewards_coefficient=0.1)
    >>> f"{bradley_terry(rewards_BN, margin_B, config)[0]:.3f}"
    '1.374'
    """
    z_B = difference(rewards_BN)
    if config.use_margins:
        z_B = z_B - margin_B
    loss_B = smoothed_log_sigmoid(z_B, float(config.label_smoothing))
    if config.center_rewards_coefficient:
        sum_B = rewards_BN[:, CHOSEN] + rewards_BN[:, REJECTED]
        loss_B = loss_B + config.center_rewards_coefficient * sum_B**2
    return loss_B


def reward_loss(decoder: Decoder, config: RewardLossConfig) -> LossFn:
    """Returns the loss function of pairs for a reward model.

    The batch: tokens_BNT, mask_BNT int32; margin_B and weight_B float32, the latter 0
    for rows that only fill the batch. Metrics have the names of TRL's RewardTrainer.
    """

    def loss_fn(
        params: Params | Adapted, batch: Batch, total_weight: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        rewards_BN = pair_rewards(decoder, params, batch)
        margin_B = difference(rewards_BN)
        weight_B = batch["weight_B"] / total_weight
        loss_B = bradley_terry(rewards_BN, batch["margin_B"], config)
        metrics_B = {
            "accuracy": (margin_B > 0).astype(jnp.float32),
            "margin": margin_B,
            "mean_reward": jnp.mean(rewards_BN, axis=1),
        }
        metrics = {name: jnp.sum(weight_B * x) for name, x in metrics_B.items()}
        return jnp.sum(weight_B * loss_B), metrics

    return loss_fn


def pair_rewards(
    decoder: Decoder, params: Params | Adapted, batch: Batch
) -> Float[Array, "B N"]:
    """Returns the rewards of a batch of pairs, float32."""
    B, N, T = batch["tokens_BNT"].shape
    rows = (batch[name].reshape(B * N, T) for name in ("tokens_BNT", "mask_BNT"))
    sequences = from_mask(*(constrain(x, decoder.mesh, BATCH) for x in rows))
    return decoder.rewards(params, sequences).reshape(B, N)
