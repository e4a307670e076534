"""What a model reads: rows of one or more sequences, and who may look at whom."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Sequences(NamedTuple):
    """Rows of tokens; a row holds one or more sequences, and padding anywhere else.

    A sequence's tokens stand in their order.

    Attributes:
      tokens_BT: token ids; what stands at padding does not matter.
      positions_BT: each token's number in its own sequence, int32, from 0.
      segments_BT: the number of a token's sequence in its row, int32, from 1;
        0: padding.
    """

    tokens_BT: jax.Array
    positions_BT: jax.Array
    segments_BT: jax.Array


def from_mask(tokens_BT: Int[Array, "B T"], mask_BT: Int[Array, "B T"]) -> Sequences:
    """Returns rows of one sequence each.

    Args:
      tokens_BT: token ids.
      mask_BT: 1 = token, 0 = padding on either side.
    """
    positions_BT = jnp.maximum(jnp.cumsum(mask_BT, axis=1) - 1, 0)
    return Sequences(tokens_BT, positions_BT, (mask_BT > 0).astype(jnp.int32))


def may_attend(
    queries: Sequences, keys: Sequences, reach: jax.Array | int
) -> Bool[Array, "B T S"]:
    """Returns who may look at whom: at one's own sequence, itself and what is before.

    Args:
      queries: [B, T].
      keys: [B, S].
      reach: how many tokens a query sees, its own included: a window's width.
    """
    distance_BTS = queries.positions_BT[:, :, None] - keys.positions_BT[:, None, :]
    same_BTS = queries.segments_BT[:, :, None] == keys.segments_BT[:, None, :]
    return same_BTS & (distance_BTS >= 0) & (distance_BTS < reach)
