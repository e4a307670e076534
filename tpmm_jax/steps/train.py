"""The train step of any loss, which refuses an update that is not finite."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from tpmm_jax.axes import Params
from tpmm_jax.losses import (
    Batch,
    CoupledLoss,
    LossFn,
    Metrics,
    coupled_gradients,
    gradients,
    log_probs,
)
from tpmm_jax.models import Adapted, Decoder, Noisy, from_mask
from tpmm_jax.steps.config import TrainConfig
from tpmm_jax.steps.optimizer import make_optimizer
from tpmm_jax.steps.state import Frozen, TrainState, mesh_of, shardings

# (state, batch, learning rate, frozen=, constants=) -> (state, metrics)
TrainStep = Callable[..., tuple[TrainState, Metrics]]


def language_model_loss(decoder: Decoder) -> LossFn:
    """Returns the mean negative log-probability per token, for pretraining.

    The batch: tokens_BT, mask_BT int32; weight_B float32, each row's number of
    predicted tokens.
    """

    def loss_fn(
        params: Params | Adapted, batch: Batch, total_weight: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        sequences = from_mask(batch["tokens_BT"], batch["mask_BT"])
        logp = log_probs(decoder, params, sequences)
        logp *= (batch["weight_B"] > 0)[:, None]
        return -jnp.sum(logp) / total_weight, {}

    return loss_fn


def bind(
    loss_fn: LossFn | CoupledLoss, frozen: Frozen | None, step: jax.Array
) -> LossFn | CoupledLoss:
    """Returns the loss as a function of what is trained alone."""
    if frozen is None:
        return loss_fn
    key = frozen.dropout_key
    key = None if key is None else jax.random.fold_in(key, step)

    def whole(trained: Params) -> Any:
        if frozen.base:
            return Adapted(frozen.base, trained, key)
        return trained if key is None else Noisy(trained, key)

    def of_trained(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda trained, *rest: function(whole(trained), *rest)

    if isinstance(loss_fn, CoupledLoss):
        return loss_fn._replace(scores=of_trained(loss_fn.scores))
    return of_trained(loss_fn)


def make_train_step(
    loss_of: Callable[[Any], LossFn | CoupledLoss],
    config: TrainConfig,
    abstract: TrainState,
) -> TrainStep:
    """Returns the jitted step (state, batch, learning rate); the state is donated.

    With LoRA the state's params are the adapters, and a further argument is Frozen, as
    with noise.
    The last one, ``constants``, is a tree whose leaves may differ in one program.

    Its metrics are of the state before the update: loss, grad_norm (L2, before
    clipping), and what the loss function reports. A step of which one of these is not
    finite changes nothing, nor does any step after it: the state stays the last good
    one, see TrainState.step.

    Args:
      loss_of: from the step's constants to its loss.
      abstract: the state's shapes and shardings, from abstract_state.
    """
    optimizer = make_optimizer(config)
    where, mesh = shardings(abstract), mesh_of(abstract)

    # Pinned: the compiler would choose other shardings for what it returns.
    @functools.partial(
        jax.jit,
        donate_argnums=0,
        out_shardings=None if where is None else (where, None),
    )
    def step(
        state: TrainState,
        batch: Batch,
        learning_rate: jax.Array,
        frozen: Frozen | None = None,
        constants: Any = None,
    ) -> tuple[TrainState, Metrics]:
        grads, loss, metrics, loss_state = state_gradients(
            loss_of(constants), state, batch, config.accumulation, mesh, frozen
        )
        norm = optax.global_norm(grads)
        # A product fuses into the update; optax's quotient makes a second tree.
        scale = jnp.minimum(1.0, config.max_grad_norm / (norm + 1e-6))
        grads = jax.tree.map(lambda g: scale * g, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        metrics = {"loss": loss, "grad_norm": norm, **metrics}
        new = TrainState(params, opt_state, state.step + 1, loss_state)
        # The metrics too: an infinite log-ratio can leave a finite loss.
        good = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
        good &= state.step >= 0
        stopped = jnp.where(state.step < 0, state.step, -1 - state.step)
        old = state._replace(step=stopped)
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old), metrics

    return step


def state_gradients(
    loss_fn: LossFn | CoupledLoss,
    state: TrainState,
    batch: Batch,
    accumulation: int,
    mesh: Mesh | None,
    frozen: Frozen | None = None,
) -> tuple[Params, jax.Array, Metrics, Any]:
    """Returns (gradients, loss, metrics, next loss state) of a batch."""
    loss_fn = bind(loss_fn, frozen, state.step)
    if isinstance(loss_fn, CoupledLoss):
        return coupled_gradients(
            loss_fn, state.params, batch, state.loss_state, accumulation, mesh
        )
    found = gradients(loss_fn, state.params, batch, accumulation, mesh)
    return *found, state.loss_state


def gradient_norm_step(
    loss_fn: LossFn | CoupledLoss, train: TrainConfig, mesh: Mesh | None
) -> Callable[..., jax.Array]:
    """Returns the jitted norm of a batch's gradient: (state, batch, frozen) -> []."""

    @jax.jit
    def norm(
        state: TrainState, batch: Batch, frozen: Frozen | None = None
    ) -> jax.Array:
        found = state_gradients(loss_fn, state, batch, train.accumulation, mesh, frozen)
        return optax.global_norm(found[0])

    return norm
