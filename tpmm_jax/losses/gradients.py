"""Gradients of a loss over a batch, micro-batch by micro-batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tpmm_jax.losses.inputs import mean_chosen_length
from tpmm_jax.mesh import BATCH, constrain

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# (params, batch, total_weight) -> (sum of losses, sums of metrics), both divided by
# total_weight, so that micro-batches of one batch add up exactly.
LossFn = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Metrics]]


class CoupledLoss(NamedTuple):
    """A loss of a whole batch, in two parts.

    Attributes:
      scores: (params, batch) -> tree of arrays with a leading batch axis, each row of
        its own batch row alone.
      loss: (scores, batch, total weight, loss state) -> (loss, (metrics, next state)).
    """

    scores: Callable[[Any, Batch], Any]
    loss: Callable[..., tuple[jax.Array, tuple[Metrics, Any]]]


def gradients(
    loss_fn: LossFn,
    params: Any,
    batch: Batch,
    accumulation: int,
    mesh: Mesh | None,
) -> tuple[Any, jax.Array, Metrics]:
    """Returns (gradients, loss, metrics) of a batch.

    Args:
      batch: arrays with a leading batch axis; "weight_B" sums to the total weight.
      accumulation: number of micro-batches; divides the batch.
    """
    batch, total = with_totals(batch)
    both = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulation == 1:
        (loss, metrics), grads = both(params, batch, total)
        return grads, loss, metrics
    micro = _split(batch, accumulation, mesh)

    def one(carry: Any, batch: Batch) -> tuple[Any, None]:
        (loss, metrics), grads = both(params, batch, total)
        return jax.tree.map(jnp.add, carry, (grads, loss, metrics)), None

    shapes = jax.eval_shape(both, params, jax.tree.map(lambda x: x[0], micro), total)
    (loss, metrics), grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(one, (grads, loss, metrics), micro)[0]


def coupled_gradients(
    coupled: CoupledLoss,
    params: Any,
    batch: Batch,
    state: Any,
    accumulation: int,
    mesh: Mesh | None,
) -> tuple[Any, jax.Array, Metrics, Any]:
    """Returns (gradients, loss, metrics, next loss state), exact for any accumulation.

    The whole batch's scores come first, without their gradient; the loss is
    differentiated with respect to them; then each micro-batch is computed again and
    sends its own scores' cotangents back: one more forward pass than ``gradients``.
    """
    batch, total = with_totals(batch)

    def loss_of(scores: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
        return coupled.loss(scores, batch, total, state)

    if accumulation == 1:
        both = jax.value_and_grad(
            lambda p: loss_of(coupled.scores(p, batch)), has_aux=True
        )
        (loss, (metrics, state)), grads = both(params)
        return grads, loss, metrics, state
    micro = _split(batch, accumulation, mesh)
    split = jax.lax.map(lambda batch: coupled.scores(params, batch), micro)
    scores = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), split)
    (loss, (metrics, state)), pulls = jax.value_and_grad(loss_of, has_aux=True)(scores)

    def one(grads: Any, part: tuple[Batch, Any]) -> tuple[Any, None]:
        batch, pull = part
        back = jax.vjp(lambda p: coupled.scores(p, batch), params)[1]
        return jax.tree.map(jnp.add, grads, back(pull)[0]), None

    start = jax.tree.map(jnp.zeros_like, params)
    grads = jax.lax.scan(one, start, (micro, _split(pulls, accumulation, mesh)))[0]
    return grads, loss, metrics, state


def with_totals(batch: Batch) -> tuple[Batch, jax.Array]:
    """Returns the batch with what only the whole of it tells, and its total weight.

    Pairs get mean_length_B, the mean number of chosen tokens, the same in every row:
    micro-batches need the whole batch's.
    """
    if "completion_mask_BNT" in batch:
        length_BN = jnp.sum(batch["completion_mask_BNT"], axis=-1)
        weight_B = batch["weight_B"]
        mean = mean_chosen_length(length_BN, weight_B, weight_B.dtype)
        batch = {**batch, "mean_length_B": jnp.broadcast_to(mean, weight_B.shape)}
    return batch, jnp.maximum(jnp.sum(batch["weight_B"]), 1e-9)


def _split(batch: Any, accumulation: int, mesh: Mesh | None) -> Any:
    micro = jax.tree.map(
        lambda x: x.reshape(accumulation, x.shape[0] // accumulation, *x.shape[1:]),
        batch,
    )
    return jax.tree.map(lambda x: constrain(x, mesh, None, BATCH), micro)
