"""Noise of training: dropout of the layers, jitter of the routers.

A row's noise is drawn by its own tokens, the layer and the place, so that it depends
neither on the batch around it nor on how a batch is split.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tpmm_jax.axes import Params
from tpmm_jax.models.lora import row_hash
from tpmm_jax.models.sequences import Sequences

# Places in a layer that draw.
ATTENTION, MLP, ROUTER = 0, 1, 2
_PLACES = 3


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """What training draws; nothing of it enters evaluation.

    Attributes:
      dropout: share of the numbers that are zeroed of what each layer's attention and
        feed-forward add.
      jitter: a router's input is multiplied by numbers from [1 - jitter, 1 + jitter]
        (Switch, 2101.03961, appendix C).
    """

    dropout: float = 0.0
    jitter: float = 0.0


NO_NOISE = NoiseConfig()


class Noisy(NamedTuple):
    """Parameters with the key of a step's noise, for ``Decoder.forward``."""

    params: Params
    key: jax.Array


def row_keys(key: jax.Array, sequences: Sequences) -> jax.Array:
    """Returns a key for each row, as data: uint32 [B, ...]."""
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, row_hash(sequences))
    return jax.random.key_data(keys_B)


def at(keys_B: jax.Array, layer: jax.Array, place: int) -> jax.Array:
    """Returns the rows' keys of a place in a layer, as data."""

    def fold(data: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(data)
        return jax.random.key_data(jax.random.fold_in(key, layer * _PLACES + place))

    return jax.vmap(fold)(keys_B)


def jitter(
    x_BTD: Float[Array, "B T D"], keys_B: jax.Array, share: Any
) -> Float[Array, "B T D"]:
    """Multiplies by numbers from [1 - share, 1 + share], float32."""

    def draw(data: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(data)
        return jax.random.uniform(
            key, x_BTD.shape[1:], jnp.float32, 1 - share, 1 + share
        )

    return x_BTD.astype(jnp.float32) * jax.vmap(draw)(keys_B)
