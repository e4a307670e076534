"""Pieces of a transformer layer: norms, rotary embedding, attention, gated MLP."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tpmm_jax.mesh import BATCH, FSDP, TENSOR, constrain
from tpmm_jax.models.config import ModelConfig, RopeConfig

# Keys and values of all layers: [L, B, S, G, E] each.
Cache = tuple[jax.Array, jax.Array]

# Large but finite: a row with nothing to attend to stays finite, forward and backward.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def matmul_precision(dtype: Any) -> jax.lax.Precision | None:
    """float32 means float32 on every backend (TPU and GPU default to less)."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def einsum(equation: str, *arrays: jax.Array, dtype: Any) -> jax.Array:
    """``jnp.einsum`` in ``dtype``, accumulated in float32."""
    arrays = tuple(x.astype(dtype) for x in arrays)
    return jnp.einsum(
        equation,
        *arrays,
        precision=matmul_precision(dtype),
        preferred_element_type=jnp.float32,
    ).astype(dtype)


def inverse_wavelengths(rope: RopeConfig, head_dim: int) -> jax.Array:
    """Returns float32 [E/2], radians a position.

    Source: RoFormer (2104.09864) eq. 15; "llama3" as published with Llama 3.1:
    wavelengths over original/low are stretched by factor, those under
    original/high are kept, those between are interpolated.
    """
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    inverse = 1.0 / (rope.theta**exponent)
    if rope.scaling == "none":
        return inverse
    wavelength = 2 * math.pi / inverse
    ratio = rope.original_max_positions / wavelength
    smooth = (ratio - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    smooth = jnp.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * inverse / rope.factor + smooth * inverse


def rotate(x_BTHE: jax.Array, positions_BT: jax.Array, rope: RopeConfig) -> jax.Array:
    """Rotates the two halves of each head by its position's angles, in float32."""
    angles = positions_BT[..., None].astype(jnp.float32) * inverse_wavelengths(
        rope, x_BTHE.shape[-1]
    )
    sin, cos = jnp.sin(angles)[:, :, None, :], jnp.cos(angles)[:, :, None, :]
    first, second = jnp.split(x_BTHE.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return rotated.astype(x_BTHE.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + scale), in float32 (1910.07467)."""

    epsilon: float
    offset: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        start = nn.initializers.constant(1.0 - self.offset)
        scale: Any = self.param(
            "scale", nn.with_partitioning(start, (None,)), (x.shape[-1],)
        )
        x32 = x.astype(jnp.float32)
        x32 *= jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.epsilon)
        return (x32 * (self.offset + scale.astype(jnp.float32))).astype(x.dtype)


def dense(fan_in: int, axes: tuple[Any, ...]) -> Any:
    """Normal initialiser with standard deviation fan_in^-1/2, and the axes."""
    return nn.with_partitioning(nn.initializers.normal(fan_in**-0.5), axes)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and an optional cache."""

    config: ModelConfig
    dtype: Any
    mesh: Mesh | None

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        allowed_BTS: jax.Array,
        cache: Cache | None,
        slot: jax.Array | None,
        layer: jax.Array,
    ) -> tuple[jax.Array, Cache | None]:
        c, dtype = self.config, self.dtype
        D, H, G, E = c.width, c.num_heads, c.num_kv_heads, c.head_dim
        w_q = self.param("query", dense(D, (FSDP, TENSOR, None)), (D, H, E))
        w_k = self.param("key", dense(D, (FSDP, TENSOR, None)), (D, G, E))
        w_v = self.param("value", dense(D, (FSDP, TENSOR, None)), (D, G, E))
        w_o = self.param("output", dense(H * E, (TENSOR, None, FSDP)), (H, E, D))

        q_BTHE = einsum("BTD,DHE->BTHE", x_BTD, w_q, dtype=dtype)
        k_BTGE = einsum("BTD,DGE->BTGE", x_BTD, w_k, dtype=dtype)
        v_BTGE = einsum("BTD,DGE->BTGE", x_BTD, w_v, dtype=dtype)
        if c.qk_norm:
            q_BTHE = RMSNorm(c.norm_eps, c.norm_offset, name="query_norm")(q_BTHE)
            k_BTGE = RMSNorm(c.norm_eps, c.norm_offset, name="key_norm")(k_BTGE)
        q_BTHE = constrain(
            rotate(q_BTHE, positions_BT, c.rope), self.mesh, BATCH, None, TENSOR
        )
        k_BTGE = rotate(k_BTGE, positions_BT, c.rope)

        if cache is None:
            k_BSGE, v_BSGE = k_BTGE, v_BTGE
        else:
            cache = write_cache(cache, k_BTGE, v_BTGE, layer, slot)
            k_BSGE, v_BSGE = (
                jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in cache
            )
        out_BTHE = attend(q_BTHE, k_BSGE, v_BSGE, allowed_BTS, dtype)
        return einsum("BTHE,HED->BTD", out_BTHE, w_o, dtype=dtype), cache


def write_cache(
    cache: Cache,
    k_BTGE: jax.Array,
    v_BTGE: jax.Array,
    layer: jax.Array,
    slot: jax.Array | None,
) -> Cache:
    """Writes one layer's keys and values at positions slot, slot + 1, ..."""
    start: Any = (layer, 0, slot, 0, 0)
    k_LBSGE, v_LBSGE = cache
    return (
        jax.lax.dynamic_update_slice(
            k_LBSGE, k_BTGE[None].astype(k_LBSGE.dtype), start
        ),
        jax.lax.dynamic_update_slice(
            v_LBSGE, v_BTGE[None].astype(v_LBSGE.dtype), start
        ),
    )


def attend(
    q_BTHE: jax.Array,
    k_BSGE: jax.Array,
    v_BSGE: jax.Array,
    allowed_BTS: jax.Array,
    dtype: Any,
) -> jax.Array:
    """softmax(q k / sqrt(E)) v, the softmax in float32; returns [B, T, H, E]."""
    B, T, H, E = q_BTHE.shape
    G = k_BSGE.shape[2]
    q_BTGME = q_BTHE.reshape(B, T, G, H // G, E)
    scores = jnp.einsum(
        "BTGME,BSGE->BGMTS",
        q_BTGME,
        k_BSGE,
        precision=matmul_precision(dtype),
        preferred_element_type=jnp.float32,
    )
    scores = jnp.where(allowed_BTS[:, None, None], scores * E**-0.5, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    out = einsum("BGMTS,BSGE->BTGME", weights, v_BSGE, dtype=dtype)
    return out.reshape(B, T, H, E)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)) (2002.05202)."""

    config: ModelConfig
    dtype: Any
    mesh: Mesh | None

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        D, F = self.config.width, self.config.mlp_width
        w_gate = self.param("gate", dense(D, (FSDP, TENSOR)), (D, F))
        w_up = self.param("up", dense(D, (FSDP, TENSOR)), (D, F))
        w_down = self.param("down", dense(F, (TENSOR, FSDP)), (F, D))
        gate = einsum("BTD,DF->BTF", x_BTD, w_gate, dtype=self.dtype)
        up = einsum("BTD,DF->BTF", x_BTD, w_up, dtype=self.dtype)
        hidden = constrain(
            ACTIVATIONS[self.config.activation](gate) * up,
            self.mesh,
            BATCH,
            None,
            TENSOR,
        )
        return einsum("BTF,FD->BTD", hidden, w_down, dtype=self.dtype)


ACTIVATIONS = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}
