"""The train step of reward models, and the rewards of rows and of pairs."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tpmm_jax.axes import Params
from tpmm_jax.losses import RewardLossConfig, pair_rewards, reward_loss
from tpmm_jax.models import Decoder, from_mask
from tpmm_jax.steps.config import TrainConfig
from tpmm_jax.steps.state import abstract_state
from tpmm_jax.steps.train import TrainStep, gradient_norm_step, make_train_step

# Rewards [B, N] of a batch of pairs, float32.
pair_rewards_step = jax.jit(pair_rewards, static_argnames="decoder")


@functools.cache
def reward_step(
    decoder: Decoder, loss: RewardLossConfig, train: TrainConfig
) -> TrainStep:
    """Returns the train step of a reward model; see ``losses.reward_loss``."""
    return make_train_step(
        lambda constants: reward_loss(decoder, loss),
        train,
        abstract_state(decoder.abstract_trained(), train),
    )


@functools.cache
def reward_gradient_norm_step(
    decoder: Decoder, loss: RewardLossConfig, train: TrainConfig
) -> Callable[..., jax.Array]:
    """Returns the norm of a batch's gradient, to look for what made it not finite."""
    return gradient_norm_step(reward_loss(decoder, loss), train, decoder.mesh)


@functools.partial(jax.jit, static_argnames="decoder")
def rewards_step(
    decoder: Decoder, params: Params, tokens_BT: jax.Array, mask_BT: jax.Array
) -> jax.Array:
    """Returns the reward [B] of each row, float32; see ``Decoder.rewards``."""
    return decoder.rewards(params, from_mask(tokens_BT, mask_BT))


@functools.partial(jax.jit, static_argnames="decoder")
def rewards_and_routing_step(
    decoder: Decoder,
    params: Params,
    tokens_BT: jax.Array,
    mask_BT: jax.Array,
    count_B: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns each row's reward [B], and sums of what a mixture's routers report.

    The sums are those of ``models.experts.route`` over the rows' real tokens: share_LX,
    probability_LX, entropy_L, z_L.

    Args:
      count_B: how often each row counts, float32.
    """
    rewards_B, aux = decoder.rewards_and_aux(params, from_mask(tokens_BT, mask_BT))
    return rewards_B, {
        name.replace("_B", "_L"): jnp.einsum("B,LB...->L...", count_B, x)
        for name, x in aux.items()
    }
