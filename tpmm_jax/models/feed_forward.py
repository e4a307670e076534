"""Feed-forward networks by name."""

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from tpmm_jax.mesh import BATCH, FSDP, TENSOR, constrain
from tpmm_jax.models.config import ModelConfig
from tpmm_jax.models.layers import project

# What a layer reports beside its output, by name.
Aux = dict[str, jax.Array]

ACTIVATIONS = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


class Gated(nn.Module):
    """down(activation(gate(x)) * up(x)) (2002.05202)."""

    config: ModelConfig
    dtype: Any
    mesh: Mesh | None

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, Aux]:
        c = self.config
        D, F = c.width, c.mlp_width

        def widen(name: str) -> jax.Array:
            equation, axes = "BTD,DF->BTF", (FSDP, TENSOR)
            return project(self, name, equation, x_BTD, (D, F), axes, bias=c.mlp_bias)

        hidden = ACTIVATIONS[c.activation](widen("gate")) * widen("up")
        hidden = constrain(hidden, self.mesh, BATCH, None, TENSOR)
        equation, axes = "BTF,FD->BTD", (TENSOR, FSDP)
        out = project(self, "down", equation, hidden, (F, D), axes, bias=c.mlp_bias)
        return out, {}


# By ModelConfig.feed_forward: each maps [B, T, D] to ([B, T, D], Aux).
FEED_FORWARD = {"gated": Gated}
