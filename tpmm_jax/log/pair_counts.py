"""What an iteration's prompts gave: pairs, ties, cut answers, in one line."""

from collections.abc import Mapping
from typing import Any

# Metric -> what the number counts.
_COUNTS = {
    "pairs/train": "train",
    "pairs/held_out": "held out",
    "pairs/tied_prompts": "prompt{s} tied",
    "pairs/dropped": "dropped",
    "pairs/flipped": "flipped",
}
# Of sampled answers: why there may be more pairs than prompts (rewards.make_pairs).
_MADE = {"pairs/train": "one a prompt", "pairs/held_out": "every two answers"}


def pair_counts(row: Mapping[str, Any]) -> str:
    """Returns the counts that a row has, "" where it has none.

    >>> pair_counts({"pairs/train": 8, "pairs/held_out": 3, "pairs/tied_prompts": 1})
    '8 train (one a prompt), 3 held out (every two answers), 1 prompt tied'

    Args:
      row: of kind "pairs" or "iteration". Ties are of sampled answers only; labels
        that were not flipped are not mentioned.
    """
    counts = {
        name: row[name]
        for name in _COUNTS
        if name in row and (row[name] or name != "pairs/flipped")
    }
    made = _MADE if "pairs/tied_prompts" in row else {}
    parts = [
        f"{count:,} {_COUNTS[name].format(s='' if count == 1 else 's')}"
        + (f" ({made[name]})" if count and name in made else "")
        for name, count in counts.items()
    ]
    if "rollout/cut" in row:
        parts.append(f"{100 * row['rollout/cut']:.0f} % of the answers cut")
    if "labels/disagreed" in row:
        share, unread = row["labels/disagreed"], row["labels/unread"]
        parts.append(f"{100 * share:.0f} % of verdicts turn with the order")
        parts.append(f"{100 * unread:.0f} % of replies unread")
    return ", ".join(parts)
