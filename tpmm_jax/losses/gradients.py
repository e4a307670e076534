"""Gradients of a loss over a batch, micro-batch by micro-batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tpmm_jax.mesh import BATCH, constrain

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# (params, batch, total_weight) -> (sum of losses, sums of metrics), both divided by
# total_weight, so that micro-batches of one batch add up exactly.
LossFn = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Metrics]]


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
    total = jnp.maximum(jnp.sum(batch["weight_B"]), 1e-9)
    both = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulation == 1:
        (loss, metrics), grads = both(params, batch, total)
        return grads, loss, metrics
    micro = jax.tree.map(
        lambda x: x.reshape(accumulation, x.shape[0] // accumulation, *x.shape[1:]),
        batch,
    )
    micro = jax.tree.map(lambda x: constrain(x, mesh, None, BATCH), micro)

    def one(carry: Any, batch: Batch) -> tuple[Any, None]:
        (loss, metrics), grads = both(params, batch, total)
        return jax.tree.map(jnp.add, carry, (grads, loss, metrics)), None

    shapes = jax.eval_shape(both, params, jax.tree.map(lambda x: x[0], micro), total)
    (loss, metrics), grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(one, (grads, loss, metrics), micro)[0]
