"""Rewards of reward models: of token ids, and of answers to prompts."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from tpmm_jax.errors import BadInput
from tpmm_jax.facade._log_probs import check_tokens
from tpmm_jax.facade._prompts import require
from tpmm_jax.steps import rewards_step
from tpmm_jax.weights.source import Model


def score_tokens(rm: Model, tokens_BT: Any, mask_BT: Any) -> Float[Array, " B"]:
    """Returns the reward of each row, float32: the head at its last real token.

    The last real token is the mask's last 1, whatever its id: a pad id in the text or
    at its end counts like any other.

    >>> rm = tpmm.load_reward("my-reward-model")
    >>> tokens_BT, mask_BT = np.array([[2, 5, 7, 0]]), np.array([[1, 1, 1, 0]])
    >>> tpmm.score_tokens(rm, tokens_BT, mask_BT).shape
    (1,)

    Args:
      tokens_BT: integer token ids.
      mask_BT: 1 = token, 0 = padding, on the left or on the right.

    Raises:
      BadInput: not a reward model, shapes or ids that do not fit, a row without a
        token, or one that is longer than the model's positions.
    """
    require(rm, "reward", "score_tokens")
    tokens, mask = check_tokens(rm, tokens_BT, mask_BT)
    lengths_B, limit = np.asarray(mask).sum(axis=1), rm.config.max_positions
    for row, length in enumerate(lengths_B):
        if not 1 <= length <= limit:
            raise BadInput(
                f"row {row} has {length} tokens; wanted 1 to {limit}, the positions of "
                "the reward model (a row is never cut)"
            )
    return rewards_step(rm.decoder, rm.params, tokens, mask)
