"""Feed-forward networks by name."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tpmm_jax.mesh import BATCH, FSDP, TENSOR, constrain
from tpmm_jax.models.config import ModelConfig
from tpmm_jax.models.experts import Aux, apply_experts, route
from tpmm_jax.models.layers import PerLayer, project
from tpmm_jax.models.noise import jitter

ACTIVATIONS = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


def gated(layer: Any, x_BTD: jax.Array) -> jax.Array:
    """down(activation(gate(x)) * up(x)) (2002.05202), in the parameters of a layer."""
    c = layer.config
    D, F = c.width, c.mlp_width

    def widen(name: str) -> jax.Array:
        equation, axes = "BTD,DF->BTF", (FSDP, TENSOR)
        return project(layer, name, equation, x_BTD, (D, F), axes, bias=c.mlp_bias)

    hidden = ACTIVATIONS[c.activation](widen("gate")) * widen("up")
    hidden = constrain(hidden, layer.mesh, BATCH, None, TENSOR)
    equation, axes = "BTF,FD->BTD", (TENSOR, FSDP)
    return project(layer, "down", equation, hidden, (F, D), axes, bias=c.mlp_bias)


class Gated(nn.Module):
    """One gated feed-forward."""

    config: ModelConfig
    dtype: Any
    mesh: Mesh | None

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, real_BT: jax.Array, layer: PerLayer, noise: Any
    ) -> tuple[jax.Array, Aux]:
        return gated(self, x_BTD), {}


class Experts(nn.Module):
    """Routed experts, and a shared one where there is one; see ``experts``."""

    config: ModelConfig
    dtype: Any
    mesh: Mesh | None

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, real_BT: jax.Array, layer: PerLayer, noise: Any
    ) -> tuple[jax.Array, Aux]:
        c, weights = self.config, layer.experts
        assert c.experts is not None
        seen = x_BTD if noise is None else jitter(x_BTD, *noise)
        routing, aux = route(seen, weights.router, real_BT, c)

        def routed() -> jax.Array:
            activation = ACTIVATIONS[c.activation]
            return apply_experts(
                x_BTD, routing, weights, c, activation, self.dtype, self.mesh
            )

        if (share := c.experts.shared) is None:
            return routed().astype(self.dtype), aux
        alone = gated(self, x_BTD)
        shared = alone.astype(jnp.float32)

        def mixed() -> jax.Array:
            return (share * shared + (1 - share) * routed()).astype(self.dtype)

        has = layer.has_experts
        if has is None:
            return mixed(), aux
        aux = jax.tree.map(lambda x: jnp.where(has, x, 0.0), aux)
        return jax.lax.cond(has, mixed, lambda: alone), aux


# By ModelConfig.feed_forward: each maps (x [B, T, D], which tokens are real [B, T],
# what the layer is told, a router's noise: (keys, share) or None) to ([B, T, D], Aux).
FEED_FORWARD = {"gated": Gated, "experts": Experts}
