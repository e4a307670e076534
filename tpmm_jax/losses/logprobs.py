"""Token log-probabilities from hidden states; [B, T, V] never exists.

The head's product, the log-sum-exp and their gradients are computed for a chunk
of positions at a time, in float32. The backward pass recomputes the logits from
the saved log-sum-exp.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from tpmm_jax.axes import Params
from tpmm_jax.mesh import BATCH, TENSOR, constrain
from tpmm_jax.models import Decoder
from tpmm_jax.models.layers import matmul_precision

# Size of one chunk of float32 logits. Larger chunks are faster on accelerators
# (the head's gradient is accumulated once a chunk), smaller ones leaner.
CHUNK_BYTES = 32 * 2**20


def log_probs(
    decoder: Decoder,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    mask_BT: Int[Array, "B T"],
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Float[Array, "B T-1"]:
    """Returns log p(token t+1 | tokens up to t) in nats, float32.

    Args:
      tokens_BT: token ids.
      mask_BT: 1 = token, 0 = padding on either side.
      chunk_bytes: bound on one chunk of logits (at least one position a row).

    Returns:
      Entry t is 0 unless both mask_BT[t] and mask_BT[t + 1] are 1.
    """
    hidden_BTD = decoder.hidden(params, tokens_BT, mask_BT)
    logp = chunked_log_probs(
        hidden_BTD[:, :-1],
        decoder.head(params),
        tokens_BT[:, 1:],
        decoder=decoder,
        chunk_bytes=chunk_bytes,
    )
    return jnp.where((mask_BT[:, :-1] > 0) & (mask_BT[:, 1:] > 0), logp, 0.0)


def sequence_log_probs(
    decoder: Decoder,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    mask_BT: Int[Array, "B T"],
    completion_mask_BT: Int[Array, "B T"],
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Float[Array, "B"]:
    """Returns log p(completion | prompt): the sum over completion tokens, nats.

    Args:
      completion_mask_BT: 1 at completion tokens (those that are predicted).
    """
    logp = log_probs(decoder, params, tokens_BT, mask_BT, chunk_bytes=chunk_bytes)
    return jnp.sum(logp * (completion_mask_BT[:, 1:] > 0), axis=1)


def pair_log_probs(
    decoder: Decoder, params: Params, batch: dict[str, jax.Array], *, chunk_bytes: int
) -> jax.Array:
    """Returns log p(completion | prompt) [B, N] of a batch of pairs, nats.

    Args:
      batch: tokens_BNT, mask_BNT, completion_mask_BNT, int32.
    """
    B, N, T = batch["tokens_BNT"].shape
    rows = [
        batch[name].reshape(B * N, T)
        for name in ("tokens_BNT", "mask_BNT", "completion_mask_BNT")
    ]
    rows = [constrain(x, decoder.mesh, BATCH) for x in rows]
    logps = sequence_log_probs(decoder, params, *rows, chunk_bytes=chunk_bytes)
    return logps.reshape(B, N)


def chunked_log_probs(
    hidden_BTD: Float[Array, "B T D"],
    head_VD: Float[Array, "V D"],
    targets_BT: Int[Array, "B T"],
    *,
    decoder: Decoder,
    chunk_bytes: int = CHUNK_BYTES,
) -> Float[Array, "B T"]:
    """Returns log softmax(soft_cap(hidden head^T))[target], float32 nats."""
    B, T, _ = hidden_BTD.shape
    batch_shards = 1
    if decoder.mesh is not None:
        batch_shards = decoder.mesh.shape["data"] * decoder.mesh.shape["fsdp"]
        batch_shards *= decoder.mesh.shape["tensor"]
    chunk = chunk_bytes * batch_shards // (4 * B * head_VD.shape[0])
    chunk = max(1, min(chunk, T))
    count = -(-T // chunk)
    pad = count * chunk - T
    logp = _chunked(
        decoder.config.final_softcap,
        decoder.compute_dtype,
        decoder.mesh,
        chunk,
        jnp.pad(hidden_BTD, ((0, 0), (0, pad), (0, 0))),
        head_VD,
        jnp.pad(targets_BT, ((0, 0), (0, pad))),
    )
    return logp[:, :T]


def _chunk_logits(
    softcap: float | None, dtype: str, mesh: Mesh | None, hidden_BCD: Any, head_VD: Any
) -> jax.Array:
    logits = jnp.einsum(
        "BCD,VD->BCV",
        hidden_BCD.astype(dtype),
        head_VD.astype(dtype),
        precision=matmul_precision(dtype),
        preferred_element_type=jnp.float32,
    )
    logits = constrain(logits, mesh, BATCH, None, TENSOR)
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def _is_target(targets_BC: jax.Array, vocab_size: int) -> jax.Array:
    """bool [B, C, V]; compared, not gathered, so that V may be sharded."""
    return targets_BC[..., None] == jnp.arange(vocab_size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _chunked(
    softcap: float | None,
    dtype: str,
    mesh: Mesh | None,
    chunk: int,
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
) -> jax.Array:
    return _forward(softcap, dtype, mesh, chunk, hidden_BTD, head_VD, targets_BT)[0]


def _forward(
    softcap: float | None,
    dtype: str,
    mesh: Mesh | None,
    chunk: int,
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
) -> tuple[jax.Array, Any]:
    def one(_: None, start: jax.Array) -> tuple[None, tuple[jax.Array, jax.Array]]:
        hidden_BCD = jax.lax.dynamic_slice_in_dim(hidden_BTD, start, chunk, axis=1)
        targets_BC = jax.lax.dynamic_slice_in_dim(targets_BT, start, chunk, axis=1)
        logits = _chunk_logits(softcap, dtype, mesh, hidden_BCD, head_VD)
        lse_BC = jax.nn.logsumexp(logits, axis=-1)
        hit = _is_target(targets_BC, logits.shape[-1])
        return None, (jnp.sum(jnp.where(hit, logits, 0.0), axis=-1), lse_BC)

    starts = jnp.arange(0, hidden_BTD.shape[1], chunk)
    _, (picked, lse) = jax.lax.scan(one, None, starts)
    picked_BT, lse_BT = (
        jnp.moveaxis(x, 0, 1).reshape(targets_BT.shape) for x in (picked, lse)
    )
    return picked_BT - lse_BT, (hidden_BTD, head_VD, targets_BT, lse_BT)


def _backward(
    softcap: float | None,
    dtype: str,
    mesh: Mesh | None,
    chunk: int,
    saved: Any,
    grad_BT: jax.Array,
) -> tuple[jax.Array, jax.Array, None]:
    hidden_BTD, head_VD, targets_BT, lse_BT = saved
    precision = matmul_precision(dtype)
    head = head_VD.astype(dtype)

    def one(d_head_VD: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden_BCD, targets_BC, lse_BC, grad_BC = (
            jax.lax.dynamic_slice_in_dim(x, start, chunk, axis=1)
            for x in (hidden_BTD, targets_BT, lse_BT, grad_BT)
        )
        logits = _chunk_logits(softcap, dtype, mesh, hidden_BCD, head_VD)
        hit = _is_target(targets_BC, logits.shape[-1]).astype(jnp.float32)
        d_logits = grad_BC[..., None] * (hit - jnp.exp(logits - lse_BC[..., None]))
        if softcap is not None:
            d_logits *= 1.0 - (logits / softcap) ** 2
        d_logits = d_logits.astype(dtype)
        d_hidden_BCD = jnp.einsum(
            "BCV,VD->BCD",
            d_logits,
            head,
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        d_head_VD += jnp.einsum(
            "BCV,BCD->VD",
            d_logits,
            hidden_BCD.astype(dtype),
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        return d_head_VD, d_hidden_BCD.astype(hidden_BTD.dtype)

    zeros = jnp.zeros(head_VD.shape, jnp.float32)
    starts = jnp.arange(0, hidden_BTD.shape[1], chunk)
    d_head_VD, d_hidden = jax.lax.scan(one, zeros, starts)
    d_hidden_BTD = jnp.moveaxis(d_hidden, 0, 1).reshape(hidden_BTD.shape)
    return d_hidden_BTD, d_head_VD.astype(head_VD.dtype), None


_chunked.defvjp(_forward, _backward)
