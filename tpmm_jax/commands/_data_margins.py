"""Margins of pairs, and rated texts as the pairs that a reward model learns from."""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from tpmm_jax.commands._data_checks import Checked, count_encoded
from tpmm_jax.data.checks import empty_count
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.data.reward_pairs import prepare_reward_pairs
from tpmm_jax.errors import BadInput


def margin_facts(margins: Sequence[float]) -> dict[str, float]:
    """Returns how margins are distributed; {} where there are none.

    >>> margin_facts([2.0, 0.0, -1.0, 3.0])["median"]
    1.0
    """
    if not margins:
        return {}
    count = len(margins)
    return {
        "count": count,
        "min": min(margins),
        "median": statistics.median(margins),
        "max": max(margins),
        "share_zero": sum(m == 0 for m in margins) / count,
        "share_negative": sum(m < 0 for m in margins) / count,
    }


def margin_line(facts: dict[str, float]) -> str:
    """Returns the same as a line."""
    zero, below = 100 * facts["share_zero"], 100 * facts["share_negative"]
    return (
        f"margins of {facts['count']:,} pairs: {facts['min']:.3g} to "
        f"{facts['max']:.3g}, median {facts['median']:.3g}; {zero:.1f} % are 0, "
        f"{below:.1f} % below 0"
    )


def check_ratings(
    files: Sequence[str], data: RewardDataConfig, codec: TextCodec | None
) -> Checked:
    """Reads, pairs and encodes rated texts as a reward run does, and counts.

    Args:
      files: sources like data.ratings.
      data: columns, limits, and what becomes of bad rows.
      codec: made of ``data.reading()``; None: what needs a tokenizer is skipped.
    """
    found = Checked()
    for file in files:
        try:
            one = prepare_reward_pairs(replace(data, ratings=file), codec)
        except BadInput as error:
            found.refuse(file, error)
            continue
        found.note(one.problems)
        found.note_unread(file, one.unread)
        counts = dict(one.counts)
        found.rows += counts["rows_read"]
        counts["rows_kept"] = counts.pop("rows", 0)
        found.counts.update(counts)
        found.pairs += one.pairs
        found.encoded += one.train
        found.chat = data.chat
    found.counts["empty"] = empty_count(found.errors)
    found.counts.update(dict.fromkeys(("malformed", "pairs"), 0))
    count_encoded(found, codec)
    return found
