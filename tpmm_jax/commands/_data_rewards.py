"""Rows as a reward model reads them: their length, and where they are pooled."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tpmm_jax.commands._data_checks import Checked
from tpmm_jax.data.codec import make_codec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.prepare import prepare_pairs
from tpmm_jax.errors import BadInput
from tpmm_jax.weights.loading import resolve_reward


def check_reward(
    model: str | None,
    files: Sequence[str],
    data: DataConfig,
    found: Checked,
    *,
    auto_chat: bool,
) -> None:
    """Counts answers that transformers would pool elsewhere, and those too long.

    Args:
      model: a reward model, whose weights are not read; None: the check is skipped.
      found: what was found so far, to which the counts are added.
      auto_chat: as of ``check_pairs``.

    Raises:
      BadInput: no reward model, or one without a tokenizer.
    """
    if model is None:
        return
    source = resolve_reward(model)
    if source.tokenizer is None:
        raise BadInput(f"{model} has no tokenizer (tokenizer.json)")
    # A row of a reward model is never cut.
    whole = replace(
        data, max_prompt_length=sys.maxsize, max_completion_length=sys.maxsize
    )
    codec = make_codec(source.config, source.tokenizer, whole)
    answers: list[list[int]] = []
    for file in files:
        try:
            rows = prepare_pairs(file, whole, codec, auto_chat=auto_chat).rows
        except BadInput:
            # Refused as a whole, and noted so already.
            continue
        for row in rows:
            answers += [row.prompt_ids + row.chosen_ids]
            answers += [row.prompt_ids + row.rejected_ids]
    limit, pad = source.config.max_positions, source.config.pad_id
    found.counts.update(pooling_counts(answers, pad, limit))
    if pad is None:
        found.remarks.append(
            f"{model} names no pad_token_id: transformers refuses batches of it; here "
            "rewards are read by length"
        )
    elif found.counts["reward_pad_last"]:
        ends = pad in codec.eos_ids
        why = "which ends an answer too" if ends else "which the text ends in"
        found.remarks.append(
            f"transformers reads the reward of {found.counts['reward_pad_last']:,} of "
            f"{len(answers):,} answers before their last token: their last id is the "
            f"pad id of {model}, {pad}, {why}. Here it is read at the last token"
        )


def pooling_counts(
    answers: Sequence[Sequence[int]], pad: int | None, limit: int
) -> dict[str, int]:
    """Returns in how many answers the pad id stands, and how many are too long.

    Args:
      answers: token ids of prompts with their answers.
      pad: transformers pools at the rightmost other id; None: nothing is a pad id.
      limit: the reward model's positions.

    Returns:
      reward_pad_last: transformers reads the reward elsewhere; reward_pad_inside: it
      reads it here, but software that stops at the first pad id does not.
    """
    counts = Counter[str](reward_answers=len(answers), reward_too_long=0)
    counts.update(reward_pad_last=0, reward_pad_inside=0)
    for ids in answers:
        counts["reward_too_long"] += len(ids) > limit
        counts["reward_pad_last"] += ids[-1] == pad
        counts["reward_pad_inside"] += ids[-1] != pad and pad in ids
    return dict(counts)
