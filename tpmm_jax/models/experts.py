"""Routed experts: a mixture of feed-forwards, of which each token takes a few.

    p = softmax(x W_r),   g = p of the top k, divided by their sum
    y = s E_shared(x) + (1 - s) sum_{i in top k} g_i E_i(x)

No token is dropped. Padding passes through no routed expert.

Source: Switch (2101.03961), Mixtral (2401.04088); the shared expert's fixed share is
our reconstruction of UMM-RM (2512.00724).
"""

import contextlib
import functools
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput
from tpmm_jax.mesh import BATCH, EXPERT, FSDP, TENSOR, fit_spec
from tpmm_jax.models.config import ModelConfig
from tpmm_jax.models.grouped import grouped_dot, sort_rows
from tpmm_jax.models.layers import PerLayer, einsum

# What a layer reports beside its output, by name.
Aux = dict[str, jax.Array]

# Standard deviation of a new router.
ROUTER_STD = 0.02


class Weights(NamedTuple):
    """The routed experts of one layer, or of several with an axis in front."""

    router: jax.Array
    gate: jax.Array
    up: jax.Array
    down: jax.Array


def declare_weights(module: nn.Module, config: ModelConfig) -> Weights:
    """Declares the parameters "experts" [layers with experts, ...] of a transformer."""
    experts = config.experts
    assert experts is not None
    lead = (len(experts.places(config.num_layers)),)
    X, D, F = experts.count, config.width, config.mlp_width
    shapes: dict[str, tuple[tuple[int, ...], tuple[Any, ...], float]] = {
        "router": ((D, X), (None, None), ROUTER_STD),
        "gate": ((X, D, F), (EXPERT, FSDP, TENSOR), D**-0.5),
        "up": ((X, D, F), (EXPERT, FSDP, TENSOR), D**-0.5),
        "down": ((X, F, D), (EXPERT, TENSOR, FSDP), F**-0.5),
    }

    def start(key: jax.Array) -> Params:
        return {
            name: nn.with_partitioning(nn.initializers.normal(std), (None, *axes))(
                jax.random.fold_in(key, number), (*lead, *shape), jnp.float32
            )
            for number, (name, (shape, axes, std)) in enumerate(shapes.items())
        }

    found: Any = module.param("experts", start)
    return Weights(**nn.unbox(found))


def by_layer(layer: PerLayer, weights: Weights, config: ModelConfig) -> PerLayer:
    """Returns what each layer is told, its experts included.

    Where only some layers have experts the others are handed a neighbour's, which they
    do not use.
    """
    experts = config.experts
    assert experts is not None
    places = experts.places(config.num_layers)
    if len(places) == config.num_layers:
        return layer._replace(experts=weights)
    has = [number in places for number in range(config.num_layers)]
    slots = [max(sum(has[: n + 1]) - 1, 0) for n in range(config.num_layers)]
    spread = jax.tree.map(lambda x: jnp.take(x, jnp.asarray(slots), axis=0), weights)
    return layer._replace(experts=Weights(*spread), has_experts=jnp.asarray(has))


def check_mesh(mesh: Mesh, config: ModelConfig) -> None:
    """Raises BadInput for an axis of experts that the model cannot use."""
    size, experts = mesh.shape[EXPERT], config.experts
    if size == 1:
        return
    if experts is None:
        raise BadInput(
            f"mesh.expert is {size}, but the model is dense: nothing would lie on that "
            "axis; use mesh.fsdp, mesh.tensor or mesh.data"
        )
    if experts.count % size:
        raise BadInput(
            f"{experts.count} experts do not divide over mesh.expert = {size}; use a "
            "divisor of their number"
        )


class Routing(NamedTuple):
    """Which experts a token takes, [B, T, k] each."""

    ids: jax.Array
    gates: jax.Array


def route(
    x_BTD: jax.Array, router_DX: jax.Array, real_BT: jax.Array, config: ModelConfig
) -> tuple[Routing, Aux]:
    """Returns each token's experts and gates, float32, and sums over each row's tokens.

    The sums, float32: tokens_B; share_BX, the share of the token's k assignments that
    each expert has; probability_BX, the router's; entropy_B of the router's
    probabilities, nats; z_B, the square of the log-sum-exp of its logits.
    """
    experts = config.experts
    assert experts is not None
    logits_BTX = einsum("BTD,DX->BTX", x_BTD, router_DX, dtype="float32")
    log_p_BTX = jax.nn.log_softmax(logits_BTX)
    p_BTX = jnp.exp(log_p_BTX)
    gates, ids = jax.lax.top_k(p_BTX, experts.top_k)
    if experts.renormalise:
        gates = gates / jnp.sum(gates, axis=-1, keepdims=True)
    chosen_BTX = jnp.sum(jax.nn.one_hot(ids, experts.count), axis=2) / experts.top_k
    weight_BT = real_BT.astype(jnp.float32)
    z_BT = jax.nn.logsumexp(logits_BTX, axis=-1) ** 2
    aux = {
        "share_BX": jnp.einsum("BT,BTX->BX", weight_BT, chosen_BTX),
        "probability_BX": jnp.einsum("BT,BTX->BX", weight_BT, p_BTX),
        "entropy_B": -jnp.einsum("BT,BTX->B", weight_BT, p_BTX * log_p_BTX),
        "z_B": jnp.sum(weight_BT * z_BT, axis=1),
    }
    return Routing(jnp.where(real_BT[..., None], ids, experts.count), gates), aux


def apply_experts(
    x_BTD: jax.Array,
    routing: Routing,
    weights: Weights,
    config: ModelConfig,
    activation: Any,
    dtype: Any,
    mesh: Mesh | None,
) -> jax.Array:
    """Returns sum_i g_i E_i(x) over each token's experts, float32 [B, T, D].

    On a mesh each device computes the experts that it holds for the rows that it holds;
    the sum over the axes of experts and tensors follows.
    """
    assert config.experts is not None
    run = functools.partial(
        _local,
        count=config.experts.count,
        activation=activation,
        dtype=dtype,
        blocks=_platform(mesh) == "cpu",
    )
    if mesh is None or math.prod(mesh.shape.values()) == 1:
        return run(x_BTD, routing, weights.gate, weights.up, weights.down)
    check_mesh(mesh, config)
    rows = fit_spec(mesh, x_BTD.shape, (BATCH, None, None))
    wide = fit_spec(mesh, weights.gate.shape, (EXPERT, None, TENSOR))
    down = PartitionSpec(wide[0], wide[2], None)
    summed = tuple(axis for axis in (wide[0], wide[2]) if axis is not None)
    specs: Any = Routing(rows, rows)  # type: ignore[arg-type]
    mapped = jax.shard_map(
        lambda *args: jax.lax.psum(run(*args, axis=EXPERT), summed),
        mesh=mesh,
        in_specs=(rows, specs, wide, wide, down),
        out_specs=rows,
        check_vma=False,
    )
    return mapped(x_BTD, routing, weights.gate, weights.up, weights.down)


_stands_for: ContextVar[str | None] = ContextVar("stands_for", default=None)


@contextlib.contextmanager
def standing_for(platform: str | None) -> Iterator[None]:
    """Has what is traced here be for devices that the mesh's only stand in for.

    Args:
      platform: "gpu" or "tpu"; None: for the mesh's own.
    """
    token = _stands_for.set(platform)
    try:
        yield
    finally:
        _stands_for.reset(token)


def _platform(mesh: Mesh | None) -> str:
    if (platform := _stands_for.get()) is not None:
        return platform
    if mesh is None:
        return jax.default_backend()
    return mesh.devices.flat[0].platform


def _local(
    x_BTD: jax.Array,
    routing: Routing,
    gate_XDF: jax.Array,
    up_XDF: jax.Array,
    down_XFD: jax.Array,
    *,
    count: int,
    activation: Any,
    dtype: Any,
    blocks: bool,
    axis: str | None = None,
) -> jax.Array:
    """Returns the sum over the experts that are given."""
    B, T, D = x_BTD.shape
    held, k = gate_XDF.shape[0], routing.ids.shape[-1]
    ids = routing.ids
    if axis is not None and held < count:
        ids = ids - held * jax.lax.axis_index(axis)
    groups, places = sort_rows(ids.reshape(-1), held, blocks=blocks)
    # Unique places both ways: the gradient adds nothing up in an order of its own.
    copies = jnp.repeat(x_BTD.reshape(B * T, D), k, axis=0)
    x = jnp.zeros((places, D), x_BTD.dtype)
    x = x.at[groups.place_A].set(copies, mode="drop", unique_indices=True)

    def dot(x: jax.Array, w: jax.Array) -> jax.Array:
        return grouped_dot(x, w, groups, dtype)

    wide = activation(dot(x, gate_XDF).astype(dtype)) * dot(x, up_XDF).astype(dtype)
    out = dot(wide, down_XFD)
    taken = out.at[groups.place_A].get(mode="fill", fill_value=0, unique_indices=True)
    gates = routing.gates.reshape(B * T, k, 1)
    return jnp.sum(gates * taken.reshape(B * T, k, D), axis=1).reshape(B, T, D)
