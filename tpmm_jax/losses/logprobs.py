"""Token log-probabilities from hidden states; [B, T, V] never exists.

With the logits z_v = cap(h . w_v) of a position and y the token that comes next,

    log p(y) = z_y - lse,    lse = log sum_v exp z_v
    d log p(y) / d (h . w_v) = ([v = y] - exp(z_v - lse)) (1 - (z_v / cap)^2)

The vocabulary is walked in blocks, in float32. The forward pass keeps running sums;
the backward pass computes a block's logits again, with the forward pass's lse. Blocks
are of the vocabulary and not of positions, so that each row of the head's gradient is
written once.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tpmm_jax.axes import Params
from tpmm_jax.mesh import BATCH, FSDP, TENSOR, constrain, gather
from tpmm_jax.models import Adapted, Decoder, Sequences, soft_cap
from tpmm_jax.models.layers import einsum

MIN_BLOCK = 128


def log_probs(
    decoder: Decoder, params: Params | Adapted, sequences: Sequences
) -> Float[Array, "B _"]:
    """Returns log p(token t+1 | its sequence up to t) in nats, float32.

    Args:
      sequences: [B, T].

    Returns:
      [B, T - 1]; entry t is 0 unless tokens t and t + 1 are of one sequence.
    """
    return log_probs_and_mass(decoder, params, sequences, mass=False)[0]


def log_probs_and_mass(
    decoder: Decoder, params: Params | Adapted, sequences: Sequences, *, mass: bool
) -> tuple[Float[Array, "B _"], Float[Array, "B _"] | None]:
    """Returns ``log_probs`` and log sum_v p(v)^2 of each token's distribution.

    Args:
      mass: whether to return the latter, which has no gradient; else it is None.
    """
    tokens_BT, _, segments_BT = sequences
    forward = decoder.forward(params, sequences)
    found = chunked_log_probs(
        forward.hidden[:, :-1],
        forward.head,
        tokens_BT[:, 1:],
        decoder=decoder,
        mass=mass,
    )
    here_BT, next_BT = segments_BT[:, :-1], segments_BT[:, 1:]
    real_BT = (here_BT == next_BT) & (next_BT > 0)
    return jax.tree.map(lambda x: jnp.where(real_BT, x, 0.0), found)


class _Blocks(NamedTuple):
    """How the vocabulary is walked; static.

    The head is seen as [C, V/C, D], C being the tensor axis that splits it, and a
    block takes ``width`` rows of each part. The last block may begin early, over
    rows that were seen before: those are masked.
    """

    decoder: Decoder
    parts: int
    width: int
    rows: int
    mass: bool

    @property
    def number(self) -> int:
        return -(-self.rows // self.width)

    def start(self, block: jax.Array) -> jax.Array:
        return jnp.minimum(block * self.width, self.rows - self.width)

    def take(self, head_CVD: jax.Array, block: jax.Array) -> jax.Array:
        start, dtype = self.start(block), self.decoder.compute_dtype
        some = jax.lax.dynamic_slice_in_dim(head_CVD, start, self.width, axis=1)
        return gather(some.astype(dtype), self.decoder.mesh, TENSOR, None, FSDP)

    def ids_and_new(self, block: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the block's token ids [C, V] and which rows are new [V]."""
        rows = self.start(block) + jnp.arange(self.width)
        ids_CV = jnp.arange(self.parts)[:, None] * self.rows + rows
        return ids_CV, rows >= block * self.width

    def logits(self, hidden_BTD: jax.Array, block_CVD: jax.Array) -> jax.Array:
        """Returns the block's logits [B, T, C, V], float32."""
        dtype = self.decoder.compute_dtype
        logits = einsum("BTD,CVD->BTCV", hidden_BTD, block_CVD, dtype=dtype)
        logits = constrain(logits, self.decoder.mesh, BATCH, None, TENSOR)
        return soft_cap(logits, self.decoder.config.final_softcap)

    def split(self, head_VD: jax.Array) -> jax.Array:
        head_CVD = head_VD.reshape(self.parts, self.rows, -1)
        return constrain(head_CVD, self.decoder.mesh, TENSOR, None, FSDP)


def chunked_log_probs(
    hidden_BTD: Float[Array, "B T D"],
    head_VD: Float[Array, "V D"],
    targets_BT: Int[Array, "B T"],
    *,
    decoder: Decoder,
    mass: bool = False,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"] | None]:
    """Returns log softmax(soft_cap(hidden head^T))[target], float32 nats.

    And, with ``mass``, log sum_v p(v)^2 of each distribution, without a gradient.
    """
    (B, T, _), V = hidden_BTD.shape, head_VD.shape[0]
    if B * T == 0:
        nothing = jnp.zeros((B, T), jnp.float32)
        return nothing, nothing if mass else None
    parts, batch_shards = 1, 1
    if decoder.mesh is not None:
        shape = decoder.mesh.shape
        parts = shape[TENSOR] if V % shape[TENSOR] == 0 else 1
        batch_shards = math.prod(shape[name] for name in BATCH)
        batch_shards = batch_shards if B % batch_shards == 0 else 1
    rows = V // parts
    most = max(MIN_BLOCK, decoder.chunk_bytes * batch_shards // (4 * B * T))
    # Of equal width, for what the last one shares with another is computed twice; of
    # whole tiles.
    width = -(-rows // -(-rows // min(most, rows)))
    width = min(-(-width // MIN_BLOCK) * MIN_BLOCK, rows)
    blocks = _Blocks(decoder, parts, width, rows, mass)
    return _blockwise(blocks, hidden_BTD, head_VD, targets_BT)


class _Sums(NamedTuple):
    """Sums over the vocabulary's blocks so far, [B, T] each.

    Attributes:
      top: the largest logit z.
      powers: of exp(z - top).
      squares: of exp(z - top)^2; None: not asked for.
      target: the target's logit, 0 before its block.
    """

    top: jax.Array
    powers: jax.Array
    squares: jax.Array | None
    target: jax.Array

    def add(self, logits: jax.Array, hit: jax.Array) -> "_Sums":
        """Adds a block of logits [B, T, C, V]; ``hit`` is true at the targets."""
        top = jnp.maximum(self.top, jnp.max(logits, axis=(-2, -1)))
        shrink = jnp.exp(self.top - top)
        powers = jnp.exp(logits - top[..., None, None])
        squares = self.squares
        if squares is not None:
            squares = squares * shrink**2 + jnp.sum(powers**2, axis=(-2, -1))
        return _Sums(
            top,
            self.powers * shrink + jnp.sum(powers, axis=(-2, -1)),
            squares,
            self.target + jnp.sum(jnp.where(hit, logits, 0.0), axis=(-2, -1)),
        )


# log p and log sum_v p(v)^2, if that is asked for.
_Found = tuple[jax.Array, jax.Array | None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blockwise(
    blocks: _Blocks, hidden_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array
) -> _Found:
    return _forward(blocks, hidden_BTD, head_VD, targets_BT)[0]


def _forward(
    blocks: _Blocks, hidden_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array
) -> tuple[_Found, Any]:
    head_CVD = blocks.split(head_VD)

    def add_block(block: jax.Array, sums: _Sums) -> _Sums:
        logits = blocks.logits(hidden_BTD, blocks.take(head_CVD, block))
        ids_CV, new_V = blocks.ids_and_new(block)
        # Compared, not gathered, so that the vocabulary may be sharded.
        hit = (targets_BT[..., None, None] == ids_CV) & new_V
        return sums.add(jnp.where(new_V, logits, -jnp.inf), hit)

    zeros_BT = jnp.zeros(targets_BT.shape, jnp.float32)
    start = _Sums(
        jnp.full_like(zeros_BT, -jnp.inf),
        zeros_BT,
        zeros_BT if blocks.mass else None,
        zeros_BT,
    )
    sums = jax.lax.fori_loop(0, blocks.number, add_block, start)
    log_powers_BT = jnp.log(sums.powers)
    lse_BT = sums.top + log_powers_BT
    mass_BT = None
    if sums.squares is not None:
        # Relative to the largest probability 1 / powers: no square underflows.
        mass_BT = jnp.log(sums.squares) - 2 * log_powers_BT
    saved = (hidden_BTD, head_VD, targets_BT, lse_BT)
    return (sums.target - lse_BT, mass_BT), saved


def _backward(
    blocks: _Blocks, saved: Any, gradients: _Found
) -> tuple[jax.Array, jax.Array, None]:
    hidden_BTD, head_VD, targets_BT, lse_BT = saved
    head_CVD, dtype = blocks.split(head_VD), blocks.decoder.compute_dtype
    softcap = blocks.decoder.config.final_softcap

    def add_block(block: jax.Array, carry: tuple) -> tuple:
        d_hidden_BTD, d_head_CVD = carry
        block_CVD = blocks.take(head_CVD, block)
        logits = blocks.logits(hidden_BTD, block_CVD)
        ids_CV, new_V = blocks.ids_and_new(block)
        hit = targets_BT[..., None, None] == ids_CV
        # Of h . w_v, from log p's.
        d_logits = hit.astype(jnp.float32) - jnp.exp(logits - lse_BT[..., None, None])
        d_logits *= gradients[0][..., None, None]
        if softcap is not None:
            d_logits *= 1.0 - (logits / softcap) ** 2
        # A row that was seen before gets the same gradient once more.
        d_head_CVD = jax.lax.dynamic_update_slice_in_dim(
            d_head_CVD,
            einsum("BTCV,BTD->CVD", d_logits, hidden_BTD, dtype=dtype),
            blocks.start(block),
            axis=1,
        )
        d_logits = jnp.where(new_V, d_logits, 0.0)
        d_hidden_BTD += einsum("BTCV,CVD->BTD", d_logits, block_CVD, dtype=dtype)
        return d_hidden_BTD, d_head_CVD

    start = (
        jnp.zeros(hidden_BTD.shape, jnp.float32),
        blocks.split(jnp.zeros(head_VD.shape, jnp.float32)),
    )
    d_hidden_BTD, d_head_CVD = jax.lax.fori_loop(0, blocks.number, add_block, start)
    d_head_VD = d_head_CVD.reshape(head_VD.shape).astype(head_VD.dtype)
    return d_hidden_BTD.astype(hidden_BTD.dtype), d_head_VD, None


_blockwise.defvjp(_forward, _backward)
