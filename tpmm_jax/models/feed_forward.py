"""Feed-forward networks by name."""

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from tpmm_jax.mesh import BATCH, FSDP, TENSOR, constrain
from tpmm_jax.models.config import ModelConfig
from tpmm_jax.models.layers import project, scaled_normal, zeros

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
        D, F = self.config.width, self.config.mlp_width
        w_gate = self.param("gate", scaled_normal(D, (FSDP, TENSOR)), (D, F))
        w_up = self.param("up", scaled_normal(D, (FSDP, TENSOR)), (D, F))
        w_down = self.param("down", scaled_normal(F, (TENSOR, FSDP)), (F, D))
        b_gate: Any = None
        b_up: Any = None
        b_down: Any = None
        if self.config.mlp_bias:
            b_gate = self.param("gate_bias", zeros((TENSOR,)), (F,))
            b_up = self.param("up_bias", zeros((TENSOR,)), (F,))
            b_down = self.param("down_bias", zeros((None,)), (D,))
        gate = project(
            self, "gate", "BTD,DF->BTF", x_BTD, w_gate, dtype=self.dtype, bias=b_gate
        )
        up = project(
            self, "up", "BTD,DF->BTF", x_BTD, w_up, dtype=self.dtype, bias=b_up
        )
        hidden = constrain(
            ACTIVATIONS[self.config.activation](gate) * up,
            self.mesh,
            BATCH,
            None,
            TENSOR,
        )
        out = project(
            self, "down", "BTF,FD->BTD", hidden, w_down, dtype=self.dtype, bias=b_down
        )
        return out, {}


# By ModelConfig.feed_forward: each maps [B, T, D] to ([B, T, D], Aux).
FEED_FORWARD = {"gated": Gated}
