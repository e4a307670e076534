"""The Bradley-Terry loss, which trains reward models, and experts' load balance."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tpmm_jax.axes import CHOSEN, REJECTED, Params
from tpmm_jax.errors import BadInput
from tpmm_jax.losses.gradients import Batch, CoupledLoss, LossFn, Metrics
from tpmm_jax.losses.inputs import PerPair, difference, smoothed_log_sigmoid
from tpmm_jax.mesh import BATCH, constrain
from tpmm_jax.models import Adapted, Aux, Decoder, ExpertsConfig, Noisy, from_mask

# Weight of the load balance where none is given.
LOAD_BALANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class RewardLossConfig:
    """How a reward model learns from pairs.

    Attributes:
      use_margins: whether a pair's margin is subtracted from its difference of rewards.
      center_rewards_coefficient: weight of mean((r_chosen + r_rejected)^2), which keeps
        rewards around 0; 0.01 is usual, 0 leaves it out.
      label_smoothing: assumed share of flipped labels.
      load_balance: of routed experts: weight of their load balance; None: 0.01.
      z_loss: of routed experts: weight of the mean square of the log-sum-exp of a
        router's logits (2202.08906); None: 0.
    """

    use_margins: bool = False
    center_rewards_coefficient: float = 0.0
    label_smoothing: float = 0.0
    load_balance: float | None = None
    z_loss: float | None = None

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
        for name in ("load_balance", "z_loss"):
            weight = getattr(self, name)
            if weight is not None and not 0 <= weight < float("inf"):
                raise BadInput(f"loss.{name} is {weight}; use 0 or more, or none")


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


def load_balance(
    share_LX: jax.Array, probability_LX: jax.Array, experts: ExpertsConfig
) -> jax.Array:
    """Returns X sum_i f_i P_i, mean over the layers that have experts.

    f_i is expert i's share of all assignments, P_i its mean probability, both over the
    real tokens of the whole batch, whose sums are taken first: neither micro-batches
    nor the mesh change it. 1 where all experts are used alike; gradients reach P alone.

    Args:
      share_LX, probability_LX: sums over the batch; see ``experts.route``. Layers
        without experts have zeros.

    Source: Switch (2101.03961) eq. 4, for k assignments a token.
    """
    tokens_L1 = jnp.sum(share_LX, axis=1, keepdims=True)
    scale_L1 = jnp.where(tokens_L1 > 0, 1 / jnp.maximum(tokens_L1, 1.0), 0.0)
    product_L = jnp.sum(share_LX * probability_LX * scale_L1**2, axis=1)
    layers = len(experts.places(share_LX.shape[0]))
    return experts.count * jnp.sum(product_L) / layers


def reward_loss(decoder: Decoder, config: RewardLossConfig) -> LossFn | CoupledLoss:
    """Returns the loss function of pairs for a reward model.

    The batch: tokens_BNT, mask_BNT int32; margin_B and weight_B float32, the latter 0
    for rows that only fill the batch. Metrics have the names of TRL's RewardTrainer; of
    routed experts there are more: the load balance, the mean entropy of the routers,
    nats, and the largest and the smallest share that an expert of any layer has.
    """
    if decoder.config.experts is not None:
        return _experts_loss(decoder, config, decoder.config.experts)

    def loss_fn(
        params: Params | Adapted | Noisy, batch: Batch, total_weight: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        rewards_BN = pair_rewards(decoder, params, batch)
        return _of_rewards(rewards_BN, batch, total_weight, config)

    return loss_fn


def _of_rewards(
    rewards_BN: jax.Array,
    batch: Batch,
    total_weight: jax.Array,
    config: RewardLossConfig,
) -> tuple[jax.Array, Metrics]:
    """Returns the weighted mean of the pairs' losses, and its metrics."""
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


def _experts_loss(
    decoder: Decoder, config: RewardLossConfig, experts: ExpertsConfig
) -> CoupledLoss:
    """Returns the loss with its load balance, which couples the batch's tokens."""

    def scores(params: Params | Adapted | Noisy, batch: Batch) -> tuple[jax.Array, Aux]:
        rewards_BN, aux = pair_rewards_and_aux(decoder, params, batch)
        B = rewards_BN.shape[0]

        def by_pair(x: jax.Array) -> jax.Array:
            """[L, B N, ...] as sums over the pair's two rows [B, L, ...]."""
            x = jnp.moveaxis(x, 1, 0)
            return jnp.sum(x.reshape(B, -1, *x.shape[1:]), axis=1)

        return rewards_BN, jax.tree.map(by_pair, aux)

    def loss(
        scores: tuple[jax.Array, Aux],
        batch: Batch,
        total_weight: jax.Array,
        state: tuple[()],
    ) -> tuple[jax.Array, tuple[Metrics, tuple[()]]]:
        rewards_BN, aux = scores
        value, metrics = _of_rewards(rewards_BN, batch, total_weight, config)
        real_B = (batch["weight_B"] > 0).astype(jnp.float32)
        sums = {name: jnp.einsum("B,BL...->L...", real_B, x) for name, x in aux.items()}
        share_LX = sums["share_BX"]
        balance = load_balance(share_LX, sums["probability_BX"], experts)
        weight = LOAD_BALANCE if config.load_balance is None else config.load_balance
        places = jnp.asarray(experts.places(share_LX.shape[0]))
        tokens = jnp.maximum(jnp.sum(share_LX[places]), 1.0)
        z, entropy = (jnp.sum(sums[name]) / tokens for name in ("z_B", "entropy_B"))
        value = value + weight * balance + (config.z_loss or 0.0) * z
        share_LX = share_LX[places] * (len(places) / tokens)
        metrics |= {
            "router/load_balance": balance,
            "router/entropy": entropy,
            "router/busiest": jnp.max(share_LX),
            "router/idlest": jnp.min(share_LX),
        }
        return value, (metrics, state)

    return CoupledLoss(scores, loss)


def pair_rewards(
    decoder: Decoder, params: Params | Adapted | Noisy, batch: Batch
) -> Float[Array, "B N"]:
    """Returns the rewards of a batch of pairs, float32."""
    return pair_rewards_and_aux(decoder, params, batch)[0]


def pair_rewards_and_aux(
    decoder: Decoder, params: Params | Adapted | Noisy, batch: Batch
) -> tuple[jax.Array, Aux]:
    """Returns ``pair_rewards``, and what layers report of the rows, [L, B N, ...]."""
    B, N, T = batch["tokens_BNT"].shape
    rows = (batch[name].reshape(B * N, T) for name in ("tokens_BNT", "mask_BNT"))
    sequences = from_mask(*(constrain(x, decoder.mesh, BATCH) for x in rows))
    rewards, aux = decoder.rewards_and_aux(params, sequences)
    return rewards.reshape(B, N), aux
