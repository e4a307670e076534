"""The train step of pairs."""

import functools
from collections.abc import Callable

import jax

from tpmm_jax.losses import (
    CoupledLoss,
    LossConfig,
    LossFn,
    Metrics,
    Objective,
    coupled_loss,
    init_loss_state,
    is_coupled,
    preference_loss,
)
from tpmm_jax.models import Decoder
from tpmm_jax.steps.config import TrainConfig
from tpmm_jax.steps.state import TrainState, abstract_state
from tpmm_jax.steps.train import TrainStep, gradient_norm_step, make_train_step


def pair_loss_fn(decoder: Decoder, objective: Objective) -> LossFn | CoupledLoss:
    """Returns the loss function of pairs: in one pass, where their losses allow it."""
    kind = coupled_loss if is_coupled(objective.names) else preference_loss
    return kind(decoder, objective)


def preference_step(
    decoder: Decoder, loss: LossConfig, train: TrainConfig
) -> functools.partial[tuple[TrainState, Metrics]]:
    """Returns the train step of pairs, compiled once for all constants of a loss."""
    step = _preference_step(decoder, loss.names, train)
    return functools.partial(step, constants=loss.objective())


@functools.cache
def _preference_step(
    decoder: Decoder, names: tuple[str, ...], train: TrainConfig
) -> TrainStep:
    loss_state = init_loss_state(LossConfig(name=names))
    return make_train_step(
        lambda objective: pair_loss_fn(decoder, objective),
        train,
        abstract_state(decoder.abstract_trained(), train, loss_state),
    )


@functools.cache
def preference_gradient_norm_step(
    decoder: Decoder, loss: LossConfig, train: TrainConfig
) -> Callable[..., jax.Array]:
    """Returns the norm of a batch's gradient, to look for what made it not finite."""
    loss_fn = pair_loss_fn(decoder, loss.objective())
    return gradient_norm_step(loss_fn, train, decoder.mesh)
