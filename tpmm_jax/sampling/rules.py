"""From logits to a token: temperature, top-k, top-p, Gumbel noise keyed by row."""

from dataclasses import dataclass

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

    def validate(self, where: str = "sampling") -> None:
        """Raises BadInput for a value out of range."""
        wrong = {
            "max_new_tokens": (self.max_new_tokens < 1, "at least 1"),
            "temperature": (not 0 <= self.temperature < float("inf"), "0 or more"),
            "top_p": (not 0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k < 0, "0 (all) or more"),
        }
        for name, (bad, wanted) in wrong.items():
            if bad:
                raise BadInput(f"{where}.{name} is {getattr(self, name)}; use {wanted}")


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
    """Returns which tokens top-k and then top-p keep, at least one per row.

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
