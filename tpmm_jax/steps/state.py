"""What a train step consumes and returns, made from what is trained."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tpmm_jax.axes import Params
from tpmm_jax.steps.config import TrainConfig
from tpmm_jax.steps.optimizer import make_optimizer


class TrainState(NamedTuple):
    """What a step consumes and returns; donated.

    Attributes:
      step: steps done, int32; -1 - n: step n was not finite, and the state is as it
        was before that step.
      loss_state: what a loss carries from step to step.
    """

    params: Params
    opt_state: Any
    step: Any
    loss_state: Any = ()


class Frozen(NamedTuple):
    """What a step reads beside what it trains; not donated.

    Attributes:
      base: the fixed weights under adapters; {}: all weights are trained.
      dropout_key: of the iteration; each step folds its number in. None: no noise.
    """

    base: Params
    dropout_key: Any = None


def abstract_state(
    trained: Params, config: TrainConfig, loss_state: Any = ()
) -> TrainState:
    """Returns the shapes, dtypes and shardings of a state; moments lie as weights.

    Args:
      trained: what is trained, nested dict of jax.ShapeDtypeStruct or arrays.
      loss_state: what the loss carries from step to step, small and replicated.
    """
    optimizer, mesh = make_optimizer(config), mesh_of(trained)
    replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())

    def small(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated)

    opt_state = optax.tree.map_params(
        optimizer,
        lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p.sharding),
        jax.eval_shape(optimizer.init, trained),
        trained,
        transform_non_params=small,
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    return TrainState(trained, opt_state, step, jax.tree.map(small, loss_state))


def init_state(params: Params, config: TrainConfig, loss_state: Any = ()) -> TrainState:
    """Returns a state at step 0, which takes ``params`` over."""
    # Copies: a step donates its state, and no two leaves of it may share a buffer.
    own = jax.tree.map(jnp.copy, loss_state)
    opt_state = make_optimizer(config).init(params)
    state = TrainState(params, opt_state, jnp.zeros((), jnp.int32), own)
    if mesh_of(params) is None:
        return state
    return jax.device_put(state, shardings(abstract_state(params, config, loss_state)))


def shardings(tree: Any) -> Any:
    """Returns a tree of shardings, or None off a mesh."""
    if mesh_of(tree) is None:
        return None
    return jax.tree.map(lambda x: x.sharding, tree)


def mesh_of(tree: Any) -> Mesh | None:
    """Returns the mesh that a tree lies on, of arrays or their shapes."""
    mesh = getattr(jax.tree.leaves(tree)[0].sharding, "mesh", None)
    return mesh if isinstance(mesh, Mesh) else None
