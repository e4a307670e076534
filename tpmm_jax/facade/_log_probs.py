"""Logits and log-probs of token ids."""

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from tpmm_jax import losses
from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput
from tpmm_jax.facade._prompts import require
from tpmm_jax.mesh import put_batch
from tpmm_jax.models import Decoder, from_mask
from tpmm_jax.weights.source import Model


def logits(model: Model, tokens_BT: Any, mask_BT: Any) -> Float[Array, "B T V"]:
    """Returns the logits of every position, float32.

    >>> model = tpmm.load("my-model")
    >>> tokens_BT, mask_BT = np.array([[2, 5, 7]]), np.array([[1, 1, 1]])
    >>> tpmm.logits(model, tokens_BT, mask_BT).shape == (1, 3, model.config.vocab_size)
    True

    Args:
      tokens_BT: integer token ids.
      mask_BT: 1 = token, 0 = padding, on the left or on the right. Logits at
        padding mean nothing.

    Raises:
      BadInput: shapes or ids that do not fit.
    """
    require(model, "tokens", "logits")
    batch = check_tokens(model, tokens_BT, mask_BT)
    return _logits(model.decoder, model.params, *batch)


def log_probs(model: Model, tokens_BT: Any, mask_BT: Any) -> Float[Array, "B _"]:
    """Returns log p(token t+1 | tokens up to t), float32 nats.

    >>> model = tpmm.load("my-model")
    >>> tokens_BT, mask_BT = np.array([[2, 5, 7]]), np.array([[1, 1, 1]])
    >>> tpmm.log_probs(model, tokens_BT, mask_BT).shape
    (1, 2)

    Args:
      tokens_BT, mask_BT: as for ``logits``.

    Returns:
      [B, T - 1]; entry t is 0 unless both mask[t] and mask[t + 1] are 1.
    """
    require(model, "tokens", "log_probs")
    batch = check_tokens(model, tokens_BT, mask_BT)
    return _log_probs(model.decoder, model.params, *batch)


@functools.partial(jax.jit, static_argnums=0)
def _logits(decoder: Decoder, params: Params, tokens: Any, mask: Any) -> jax.Array:
    return decoder.logits(params, decoder.hidden(params, from_mask(tokens, mask)))


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(decoder: Decoder, params: Params, tokens: Any, mask: Any) -> jax.Array:
    return losses.log_probs(decoder, params, from_mask(tokens, mask))


def check_tokens(model: Model, tokens_BT: Any, mask_BT: Any) -> Any:
    """Returns both as int32 on the model's devices; raises BadInput if they misfit."""
    tokens, mask = np.asarray(tokens_BT), np.asarray(mask_BT)
    if tokens.ndim != 2 or tokens.shape != mask.shape:
        raise BadInput(
            f"tokens have shape {tokens.shape}, the mask {mask.shape}; wanted the same "
            "[B, T] for both"
        )
    if not np.issubdtype(tokens.dtype, np.integer):
        raise BadInput(f"tokens are {tokens.dtype}; wanted integer ids")
    mask = (mask > 0).astype(np.int32)
    real = tokens[mask > 0]
    if real.size and not 0 <= real.min() <= real.max() < model.config.vocab_size:
        raise BadInput(
            f"token ids run from {real.min()} to {real.max()}; the vocabulary has "
            f"{model.config.vocab_size}"
        )
    if np.any(np.abs(np.diff(mask, axis=1)).sum(axis=1) > 1):
        # One run of ones touches a side: at most one change per row.
        raise BadInput("a mask has a gap, or padding on both sides; pad on one side")
    return put_batch((tokens.astype(np.int32), mask), model.decoder.mesh)
