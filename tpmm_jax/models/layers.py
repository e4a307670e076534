"""Pieces of a transformer layer: norms, rotary embedding, attention."""

import functools
import math
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tpmm_jax.mesh import BATCH, FSDP, TENSOR, constrain, first_device, gather
from tpmm_jax.models.config import ModelConfig, RopeConfig
from tpmm_jax.models.flash import attend_flash, takes
from tpmm_jax.models.lora import drop
from tpmm_jax.models.sequences import Sequences, may_attend

# Keys and values of all layers: [L, B, S, G, E] each.
Cache = tuple[jax.Array, jax.Array]


class PerLayer(NamedTuple):
    """What differs from layer to layer beside the weights; scanned over L.

    Attributes:
      number: int32 [L], from 0.
      reach: how many tokens it sees, the query's own included: int32 [L].
      inverse_E: its rotary frequencies, float32 [L, E/2], radians per position.
      experts: its routed experts, if it has any (see ``experts.Weights``).
      has_experts: whether it has, bool [L]; None: all or none of the layers do.
    """

    number: jax.Array
    reach: jax.Array
    inverse_E: jax.Array
    experts: Any = None
    has_experts: jax.Array | None = None


# Large but finite: a row with nothing to attend to stays finite, forward and backward.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
# On CPUs: how many blocks of queries attend apart at most, and the least of a block.
BLOCKS, LEAST_BLOCK = 4, 64
# The reach of a layer without a window.
EVERYTHING = int(jnp.iinfo(jnp.int32).max)


def einsum(equation: str, x: jax.Array, y: jax.Array, *, dtype: Any) -> jax.Array:
    """``jnp.einsum`` of two arrays in ``dtype``, summed and returned in float32.

    Its gradient is multiplied in ``dtype`` too: JAX alone would multiply the float32
    one, for which a GPU takes twice as long.
    """
    # float32 means float32 on every backend (TPU and GPU default to less).
    if jnp.dtype(dtype) == jnp.float32:
        return jnp.einsum(
            equation,
            x.astype(dtype),
            y.astype(dtype),
            precision=jax.lax.Precision.HIGHEST,
        )
    return _half_einsum(equation, x.astype(dtype), y.astype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _half_einsum(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _half_forward(equation: str, x: jax.Array, y: jax.Array) -> Any:
    return _half_einsum(equation, x, y), (x, y)


def _half_backward(equation: str, kept: Any, gradient: jax.Array) -> Any:
    x, y = kept
    x_axes, y_axes, out_axes = re.split(",|->", equation)
    gradient = gradient.astype(x.dtype)
    x_grad = _half_einsum(f"{out_axes},{y_axes}->{x_axes}", gradient, y)
    y_grad = _half_einsum(f"{x_axes},{out_axes}->{y_axes}", x, gradient)
    return x_grad.astype(x.dtype), y_grad.astype(y.dtype)


_half_einsum.defvjp(_half_forward, _half_backward)


def inverse_wavelengths(rope: RopeConfig, head_dim: int) -> jax.Array:
    """Returns float32 [E/2], radians per position.

    Source: RoFormer (2104.09864) eq. 15; "linear": position interpolation
    (2306.15595) eq. 4; "llama3" as published with Llama 3.1:
    wavelengths over original/low are stretched by factor, those under
    original/high are kept, those between are interpolated.
    """
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    inverse = 1.0 / (rope.theta**exponent)
    if rope.scaling == "none":
        return inverse
    if rope.scaling == "linear":
        return inverse / rope.factor
    wavelength = 2 * math.pi / inverse
    ratio = rope.original_max_positions / wavelength
    smooth = (ratio - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    smooth = jnp.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * inverse / rope.factor + smooth * inverse


def per_layer(config: ModelConfig) -> PerLayer:
    """Returns what each layer is told."""
    c = config
    windowed = jnp.asarray(c.windowed_layers or (False,) * c.num_layers)
    everywhere_E = inverse_wavelengths(c.rope, c.head_dim)
    local_E = inverse_wavelengths(c.local_rope or c.rope, c.head_dim)
    inverse_LE = jnp.where(windowed[:, None], local_E, everywhere_E)
    reach = jnp.where(windowed, c.window or EVERYTHING, EVERYTHING)
    return PerLayer(jnp.arange(c.num_layers), reach, inverse_LE)


def rotate(
    x_BTHE: jax.Array, positions_BT: jax.Array, inverse_E: jax.Array
) -> jax.Array:
    """Rotates the two halves of each head by its position's angles, in float32."""
    angles = positions_BT[..., None].astype(jnp.float32) * inverse_E
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


def scaled_normal(fan_in: int, axes: tuple[Any, ...]) -> Any:
    """Normal initialiser with standard deviation fan_in^-1/2, and the axes."""
    return nn.with_partitioning(nn.initializers.normal(fan_in**-0.5), axes)


def project(
    layer: Any,
    name: str,
    equation: str,
    x: jax.Array,
    shape: tuple[int, ...],
    axes: tuple[Any, ...],
    *,
    bias: bool = False,
) -> jax.Array:
    """x w + bias, and what the layer's adapter of that name adds: (drop(x) A) B.

    Args:
      layer: declares the parameters, and computes in its ``dtype``.
      name: of the weight; ``_bias`` is added for the bias.
      equation: of ``einsum``; x and the result have two axes in front, B and T.
      shape: of the weight.
      axes: of the mesh, that the weight is split over.
    """
    dtype = layer.dtype
    x_axes, _, out_axes = re.split(",|->", equation)
    inputs, outputs = x_axes[2:], out_axes[2:]
    split = len(inputs)
    w = layer.param(name, scaled_normal(math.prod(shape[:split]), axes), shape)
    w = gather(w.astype(dtype), layer.mesh, *axes)
    out = einsum(equation, x, w, dtype=dtype)
    if bias:
        # Small: whole where the weight is split for memory alone.
        b_axes = tuple(None if axis == FSDP else axis for axis in axes[split:])
        zeros = nn.with_partitioning(nn.initializers.zeros, b_axes)
        b = layer.param(f"{name}_bias", zeros, shape[split:])
        # Rounded as the weights are: for_decoding may have cast it before.
        out += b.astype(dtype).astype(jnp.float32)
    out = out.astype(dtype)
    if not layer.has_variable("lora", name):
        return out
    adapter: Any = layer.get_variable("lora", name)
    if "key" in adapter:
        x = drop(x, adapter["key"], adapter["keep"])
    low = einsum(f"{x_axes},{inputs}Z->BTZ", x, adapter["a"], dtype=dtype)
    low = einsum(f"BTZ,Z{outputs}->{out_axes}", low, adapter["b"], dtype=dtype)
    return out + low.astype(dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and an optional cache."""

    config: ModelConfig
    dtype: Any
    mesh: Mesh | None
    flash: bool

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        queries: Sequences,
        keys: Sequences,
        cache: Cache | None,
        slot: jax.Array | None,
        layer: PerLayer,
    ) -> tuple[jax.Array, Cache | None]:
        c = self.config
        q_BTHE = self._project("query", x_BTD, c.num_heads)
        k_BTGE = self._project("key", x_BTD, c.num_kv_heads)
        v_BTGE = self._project("value", x_BTD, c.num_kv_heads)
        if c.qk_norm:
            q_BTHE = RMSNorm(c.norm_eps, c.norm_offset, name="query_norm")(q_BTHE)
            k_BTGE = RMSNorm(c.norm_eps, c.norm_offset, name="key_norm")(k_BTGE)
        q_BTHE = rotate(q_BTHE, queries.positions_BT, layer.inverse_E)
        q_BTHE = constrain(q_BTHE, self.mesh, BATCH, None, TENSOR)
        k_BTGE = rotate(k_BTGE, queries.positions_BT, layer.inverse_E)

        B, T, _ = x_BTD.shape
        if cache is None and self.flash and takes(B, T, self.mesh):
            out_BTHE = attend_flash(
                q_BTHE, k_BTGE, v_BTGE, queries, layer.reach, c, self.mesh
            )
            return self._output(out_BTHE), cache
        if cache is None:
            out_BTHE = attend_before(
                q_BTHE, k_BTGE, v_BTGE, queries, layer.reach, c, self.dtype, self.mesh
            )
            return self._output(out_BTHE), cache
        cache = write_cache(cache, k_BTGE, v_BTGE, layer.number, slot)
        k_BSGE, v_BSGE = (
            jax.lax.dynamic_index_in_dim(x, layer.number, keepdims=False) for x in cache
        )
        allowed_BTS = may_attend(queries, keys, layer.reach)
        out_BTHE = attend(q_BTHE, k_BSGE, v_BSGE, allowed_BTS, c, self.dtype)
        return self._output(out_BTHE), cache

    def _output(self, out_BTHE: jax.Array) -> jax.Array:
        c = self.config
        shape, axes = (c.num_heads, c.head_dim, c.width), (TENSOR, None, FSDP)
        return project(
            self, "output", "BTHE,HED->BTD", out_BTHE, shape, axes, bias=c.output_bias
        )

    def _project(self, name: str, x_BTD: jax.Array, heads: int) -> jax.Array:
        """Returns the queries, keys or values [B, T, heads, E], not rotated yet."""
        c = self.config
        shape, axes = (c.width, heads, c.head_dim), (FSDP, TENSOR, None)
        return project(self, name, "BTD,DHE->BTHE", x_BTD, shape, axes, bias=c.qkv_bias)


def write_cache(
    cache: Cache,
    k_BTGE: jax.Array,
    v_BTGE: jax.Array,
    layer: jax.Array,
    slot: jax.Array | None,
) -> Cache:
    """Writes one layer's keys and values at positions slot, slot + 1, ..."""
    # One type, in JAX's 64-bit mode too.
    start: Any = [jnp.asarray(x, jnp.int32) for x in (layer, 0, slot, 0, 0)]
    k_LBSGE, v_LBSGE = (
        jax.lax.dynamic_update_slice(old, new[None].astype(old.dtype), start)
        for old, new in zip(cache, (k_BTGE, v_BTGE))
    )
    return k_LBSGE, v_LBSGE


def attend_before(
    q_BTHE: jax.Array,
    k_BTGE: jax.Array,
    v_BTGE: jax.Array,
    sequences: Sequences,
    reach: jax.Array | int,
    config: ModelConfig,
    dtype: Any,
    mesh: Mesh | None,
) -> jax.Array:
    """``attend`` of rows to themselves; on CPUs a block of queries at a time.

    No query sees a place behind its own, so that the keys end where its block does: of
    four blocks' scores 5/8 are computed. The TPU's compiler moves more bytes so.
    """
    T = q_BTHE.shape[1]
    count = min(BLOCKS, T // LEAST_BLOCK)
    apart = count > 1 and first_device(mesh).platform == "cpu"
    count = count if apart else 1
    ends = [T * (i + 1) // count for i in range(count)]
    out = []
    for start, stop in zip([0, *ends], ends):
        queries, keys = (
            Sequences(*(x[:, begin:stop] for x in sequences)) for begin in (start, 0)
        )
        allowed_BTS = may_attend(queries, keys, reach)
        k_BSGE, v_BSGE = k_BTGE[:, :stop], v_BTGE[:, :stop]
        block = q_BTHE[:, start:stop], k_BSGE, v_BSGE, allowed_BTS
        out.append(attend(*block, config, dtype, on_cpu=apart))
    return jnp.concatenate(out, axis=1)


def attend(
    q_BTHE: jax.Array,
    k_BSGE: jax.Array,
    v_BSGE: jax.Array,
    allowed_BTS: jax.Array,
    config: ModelConfig,
    dtype: Any,
    on_cpu: bool = False,
) -> jax.Array:
    """softmax(cap(q k / sqrt(scalar))) v, scores in float32; returns [B, T, H, E].

    Args:
      on_cpu: go over the scores less often: transpose the queries in their place, and
        divide what was summed by the softmax's sum, not each weight.
    """
    B, T, H, E = q_BTHE.shape
    G = k_BSGE.shape[2]
    q, axes = q_BTHE.reshape(B, T, G, H // G, E), "BTGME"
    if on_cpu:
        q, axes = q.transpose(0, 2, 3, 1, 4), "BGMTE"
    scores = einsum(f"{axes},BSGE->BGMTS", q, k_BSGE, dtype=dtype)
    scores *= (config.query_pre_attn_scalar or E) ** -0.5
    scores = soft_cap(scores, config.attention_softcap)
    # Masked after the cap, which would bring MASKED back to -cap.
    scores = jnp.where(allowed_BTS[:, None, None], scores, MASKED)
    if on_cpu:
        top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
        weights = jnp.exp(scores - top)
    else:
        weights = jax.nn.softmax(scores, axis=-1)
    out = einsum(f"BGMTS,BSGE->{axes}", weights, v_BSGE, dtype=dtype)
    if on_cpu:
        out /= jnp.sum(weights, axis=-1, keepdims=True)
        out = out.transpose(0, 3, 1, 2, 4)
    return out.reshape(B, T, H, E).astype(dtype)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap), or x itself (2408.00118)."""
    return x if cap is None else cap * jnp.tanh(x / cap)
