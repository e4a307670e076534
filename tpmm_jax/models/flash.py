"""Attention by cuDNN's kernels, which never write the scores to memory.

They are called through ``jax.nn.dot_product_attention``. Rows of one sequence each that
begin at the first place, as pairs and completions do, need the causal kernel alone;
everything else (padding on the left, several sequences in a row, a window) goes by a
mask. Which it is, is found as the program runs.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from tpmm_jax.mesh import BATCH, TENSOR
from tpmm_jax.models.config import ModelConfig
from tpmm_jax.models.sequences import Sequences, may_attend


def has_kernel(config: ModelConfig, dtype: Any, device: Any) -> bool:
    """Whether cuDNN has a kernel for this model on this kind of device.

    bfloat16 on an NVIDIA GPU, from Ampere on; heads of at most 128, from Hopper on of
    at most 256; no soft cap.
    """
    if device.platform != "gpu" or jnp.dtype(dtype) != jnp.bfloat16:
        return False
    try:
        capability = float(device.compute_capability)
    except (AttributeError, ValueError):  # AMD's say such as "gfx942"
        return False
    widest = 256 if capability >= 9 else 128
    fits = config.head_dim % 8 == 0 and config.head_dim <= widest
    return capability >= 8 and fits and config.attention_softcap is None


def takes(shape: tuple[int, ...], config: ModelConfig, mesh: Mesh | None) -> bool:
    """Whether it takes queries of this shape [B, T, H, E] on this mesh.

    An odd T has no gradient by a mask; rows and heads are split evenly or not at all.
    """
    if shape[1] % 2:
        return False
    if mesh is None:
        return True
    tensor, groups = mesh.shape[TENSOR], config.num_kv_heads
    rows = math.prod(mesh.shape[name] for name in BATCH)
    heads = config.num_heads % tensor == 0
    return shape[0] % rows == 0 and heads and (groups == 1 or groups % tensor == 0)


def attend_flash(
    q_BTHE: jax.Array,
    k_BTGE: jax.Array,
    v_BTGE: jax.Array,
    sequences: Sequences,
    reach: jax.Array,
    config: ModelConfig,
    mesh: Mesh | None,
    implementation: Any = "cudnn",
) -> jax.Array:
    """softmax(q k / sqrt(scalar)) v, scores in float32; returns [B, T, H, E].

    Args:
      reach: of the layer; see ``may_attend``.
      implementation: "xla" computes the same without cuDNN, to test it.
    """
    scale = (config.query_pre_attn_scalar or config.head_dim) ** -0.5

    def kernel(q: Any, k: Any, v: Any, rows: Sequences, causal: Any, reach: Any) -> Any:
        def attend(**mask: Any) -> jax.Array:
            return jax.nn.dot_product_attention(
                q, k, v, scale=scale, implementation=implementation, **mask
            )

        return jax.lax.cond(
            causal,
            lambda: attend(is_causal=True),
            lambda: attend(mask=may_attend(rows, rows, reach)[:, None]),
        )

    # A real token's place in its row is its number: all before it is its sequence.
    places_T = jnp.arange(q_BTHE.shape[1])
    real_BT = sequences.segments_BT > 0
    causal = jnp.all(~real_BT | (sequences.positions_BT == places_T))
    causal &= reach >= q_BTHE.shape[1]
    inputs = q_BTHE, k_BTGE, v_BTGE, sequences, causal, reach
    if mesh is None:
        return kernel(*inputs)
    # Each device calls the kernel with its own rows and heads.
    groups = TENSOR if config.num_kv_heads % mesh.shape[TENSOR] == 0 else None
    q_spec, k_spec = (PartitionSpec(BATCH, None, name) for name in (TENSOR, groups))
    specs = (
        q_spec,
        k_spec,
        k_spec,
        PartitionSpec(BATCH),
        PartitionSpec(),
        PartitionSpec(),
    )
    split = jax.shard_map(
        kernel, mesh=mesh, in_specs=specs, out_specs=q_spec, check_vma=False
    )
    return split(*inputs)
