"""The train step of pairs."""

import functools
from collections.abc import Callable

import jax
import optax

from tpmm_jax.losses import (
    Batch,
    CoupledLoss,
    LossConfig,
    LossFn,
    coupled_loss,
    init_loss_state,
    preference_loss,
)
from tpmm_jax.models import Decoder
from tpmm_jax.steps.config import TrainConfig
from tpmm_jax.steps.state import Frozen, TrainState, abstract_state
from tpmm_jax.steps.train import TrainStep, make_train_step, state_gradients


def pair_loss_fn(
    decoder: Decoder, loss: LossConfig, chunk_bytes: int
) -> LossFn | CoupledLoss:
    """Returns the loss function of pairs: in one pass, where their losses allow it."""
    kind = coupled_loss if loss.coupled else preference_loss
    return kind(decoder, loss.objective(), chunk_bytes)


@functools.cache
def preference_step(
    decoder: Decoder, loss: LossConfig, train: TrainConfig, chunk_bytes: int
) -> TrainStep:
    """Returns the train step of pairs, compiled once for a whole run."""
    loss_fn = pair_loss_fn(decoder, loss, chunk_bytes)
    state = abstract_state(decoder.abstract_trained(), train, init_loss_state(loss))
    return make_train_step(loss_fn, train, state)


@functools.cache
def preference_gradient_norm_step(
    decoder: Decoder, loss: LossConfig, train: TrainConfig, chunk_bytes: int
) -> Callable[..., jax.Array]:
    """Returns the norm of a batch's gradient, to look for what made it not finite."""
    loss_fn, parts = pair_loss_fn(decoder, loss, chunk_bytes), train.accumulation

    @jax.jit
    def norm(
        state: TrainState, batch: Batch, frozen: Frozen | None = None
    ) -> jax.Array:
        return optax.global_norm(
            state_gradients(loss_fn, state, batch, parts, decoder.mesh, frozen)[0]
        )

    return norm
