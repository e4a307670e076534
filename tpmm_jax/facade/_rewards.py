"""Rewards of reward models: of token ids, and of answers to prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float32

from tpmm_jax.errors import BadInput
from tpmm_jax.facade._log_probs import check_tokens
from tpmm_jax.facade._prompts import require
from tpmm_jax.scoring import RewardScorer
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


def score(
    rm: Model,
    prompts: Sequence[Any],
    responses: Sequence[Sequence[str]],
    batch_size: int = 16,
    chat: bool | None = None,
) -> Float32[np.ndarray, "B R"]:
    """Returns the rewards of answers to prompts, float32; see ``RewardScorer``.

    Prompts and answers are written with the reward model's own chat template and read
    by its own tokenizer.

    >>> rm = tpmm.load_reward("my-reward-model")
    >>> tpmm.score(rm, ["w1 w2"], [["w3", "w4 w5"]]).shape
    (1, 2)

    Args:
      prompts: texts or message lists.
      responses: of each prompt R answers, as texts.
      batch_size: rows that are read at once.
      chat: True: a text is a user's message. False: conversations are refused. None:
        texts are read to the letter, conversations with the chat template.

    Raises:
      BadInput: not a reward model, no tokenizer, or a row that is longer than the
        model's positions; it is named with its length, and never cut.
    """
    require(rm, "reward", "score")
    if isinstance(prompts, str):
        raise BadInput("prompts is one text; wanted a list of prompts")
    if any(isinstance(some, str) for some in responses):
        raise BadInput("responses holds texts; wanted a list of texts for each prompt")
    scorer = RewardScorer(rm, batch_size=batch_size, chat=chat)
    return scorer(prompts, responses).astype(np.float32)
