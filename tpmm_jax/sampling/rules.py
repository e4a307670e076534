"""From logits to a token: temperature, top-k, top-p, Gumbel noise keyed by row."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tpmm_jax.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn.

    Attributes:
      max_new_tokens: bound on a completion's length, tokens.
      temperature: divides the logits; 0 is greedy.
      top_p: smallest set of tokens with at least this probability; 1 is all.
      top_k: the k likeliest tokens; 0 is all. Applied before top_p.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def validate(self, name: Callable[[str], str] = "sampling.{}".format) -> None:
        """Raises BadInput for a value out of range.

        Args:
          name: what a message calls a field.
        """
        allowed: dict[str, tuple[type, Callable[[Any], bool], str]] = {
            "max_new_tokens": (Integral, lambda x: x >= 1, "at least 1"),
            "temperature": (Real, lambda x: 0 <= x < float("inf"), "0 or more"),
            "top_p": (Real, lambda x: 0 < x <= 1, "above 0 and at most 1"),
            "top_k": (Integral, lambda x: x >= 0, "0 (all) or more"),
        }
        for field, (kind, fits, wanted) in allowed.items():
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, kind):
                what = "a whole number" if kind is Integral else "a number"
                raise BadInput(f"{name(field)} is {value!r}; use {what}, {wanted}")
            if not fits(value):
                raise BadInput(f"{name(field)} is {value}; use {wanted}")


def draw(
    logits_BV: Float[Array, "B V"], keys_B: Key[Array, " B"], config: SamplingConfig
) -> Int[Array, " B"]:
    """Returns one token per row; a row's draw depends on its own key only."""
    if config.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / config.temperature
    if 0 < config.top_k < logits_BV.shape[-1] or config.top_p < 1:
        logits_BV = jnp.where(kept(logits_BV, config), logits_BV, -jnp.inf)
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[-1:]))(
        keys_B
    )
    return jnp.argmax(logits_BV + noise_BV, axis=-1).astype(jnp.int32)


def kept(logits_BV: Float[Array, "B V"], config: SamplingConfig) -> Bool[Array, "B V"]:
    """Returns which tokens top-k and then top-p keep, at least one of numbers.

    Of tokens that are equally likely at the bound the first are kept. The logits are
    sorted once, and with top_k not even whole.
    """
    V = logits_BV.shape[-1]
    likeliest_BK, _ = jax.lax.top_k(logits_BV, min(config.top_k or V, V))
    probs_BK = jax.nn.softmax(likeliest_BK, axis=-1)
    before_BK = jnp.cumsum(probs_BK, axis=-1) - probs_BK
    rank = jnp.arange(likeliest_BK.shape[-1])
    keep_BK = (before_BK < config.top_p) | (rank == 0)
    bound_B1 = jnp.min(
        likeliest_BK, axis=-1, keepdims=True, initial=jnp.inf, where=keep_BK
    )
    above_BV = logits_BV > bound_B1
    equal_BV = logits_BV == bound_B1
    room_B1 = jnp.sum(keep_BK, axis=-1, keepdims=True) - jnp.sum(
        above_BV, axis=-1, keepdims=True
    )
    return above_BV | (equal_BV & (jnp.cumsum(equal_BV, axis=-1) <= room_B1))
