"""Attention by cuDNN's kernels, which never write the scores to memory.

They are called through ``jax.nn.dot_product_attention``. Rows of one sequence each that
begin at the first place, as pairs and completions do, need the causal kernel alone;
everything else (padding on the left, several sequences in a row, a window) goes by a
mask. Which it is, is found as the program runs.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from tpmm_jax.mesh import BATCH, EXPERT, TENSOR
from tpmm_jax.models.config import ModelConfig
from tpmm_jax.models.sequences import Sequences, may_attend


def has_kernel(
    config: ModelConfig, dtype: Any, device: Any, sizes: Mapping[str, int]
) -> bool:
    """Whether cuDNN has a kernel for this model on these devices.

    bfloat16 on an NVIDIA GPU, from Ampere on; heads of a multiple of 8 up to 128, on
    Hopper up to 256; no soft cap; heads that the mesh splits evenly, and no experts
    that it splits.

    Args:
      device: one of them.
      sizes: of the mesh's axes; empty: no mesh.
    """
    if device.platform != "gpu" or jnp.dtype(dtype) != jnp.bfloat16:
        return False
    try:
        capability = float(device.compute_capability)
    except (AttributeError, ValueError):  # AMD's say such as "gfx942"
        return False
    # Wider ones have no backward kernel elsewhere.
    widest = 256 if 9 <= capability < 10 else 128
    if capability < 8 or config.head_dim % 8 or config.head_dim > widest:
        return False
    tensor, groups = sizes.get(TENSOR, 1), config.num_kv_heads
    even = config.num_heads % tensor == 0 and (groups == 1 or groups % tensor == 0)
    return config.attention_softcap is None and even and sizes.get(EXPERT, 1) == 1


def takes(rows: int, length: int, mesh: Mesh | None) -> bool:
    """Whether it takes a batch: its rows are split evenly, and its length is even.

    With a mask an odd one has no gradient.
    """
    shards = 1 if mesh is None else math.prod(mesh.shape[name] for name in BATCH)
    return rows % shards == 0 and length % 2 == 0


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

    def kernel(q: Any, k: Any, v: Any, rows: Sequences, reach: Any) -> Any:
        attend = functools.partial(
            jax.nn.dot_product_attention, scale=scale, implementation=implementation
        )

        # Made again in the backward pass: [B, T, T] would be kept in every layer, by
        # the causal kernel too.
        @jax.checkpoint
        def masked(q: Any, k: Any, v: Any) -> Any:
            return attend(q, k, v, mask=may_attend(rows, rows, reach)[:, None])

        # A real token's place in its row is its number: all before it is its sequence.
        places_T = jnp.arange(q.shape[1])
        first = jnp.all((rows.segments_BT == 0) | (rows.positions_BT == places_T))
        return jax.lax.cond(
            first & (reach >= q.shape[1]),
            functools.partial(attend, is_causal=True),
            masked,
            *(q, k, v),
        )

    inputs = q_BTHE, k_BTGE, v_BTGE, sequences, reach
    if mesh is None:
        return kernel(*inputs)
    # Each device calls the kernel with its own rows and heads.
    groups = TENSOR if config.num_kv_heads % mesh.shape[TENSOR] == 0 else None
    P = PartitionSpec
    q_spec, k_spec = P(BATCH, None, TENSOR), P(BATCH, None, groups)
    specs = q_spec, k_spec, k_spec, P(BATCH), P()
    split = jax.shard_map(
        kernel, mesh=mesh, in_specs=specs, out_specs=q_spec, check_vma=False
    )
    return split(*inputs)
