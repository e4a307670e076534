"""From a policy's answers to its measures: the keys of an iteration's row."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tpmm_jax.evaluation.diversity import distinct
from tpmm_jax.evaluation.intervals import Interval, mean_interval, rate_interval
from tpmm_jax.evaluation.win_rates import wins

Rows = Sequence[Mapping[str, Any]]


def measure(
    rows: Rows,
    *,
    opponents: Mapping[str, Rows] | None = None,
    log_ratios: Mapping[str, np.ndarray] | None = None,
    judged: Mapping[tuple[str, str], np.ndarray] | None = None,
) -> dict[str, float]:
    """Returns {name: number} of one policy's answers to one set of prompts.

    Args:
      rows: one a prompt: "responses", "response_ids", and where they were scored
        "rewards" and "scores" (by label).
      opponents: by name the same prompts' rows of other policies: win/NAME.
      log_ratios: by name log p(answer) of the policy less that of another, nats,
        [B, S]: kl/NAME. Their mean is the KL divergence where answers are drawn at
        temperature 1 from the whole vocabulary.
      judged: by (judge, name) our share of wins, [B, S].
    """
    texts = [text for row in rows for text in row["responses"]]
    lengths = [len(ids) for row in rows for ids in row["response_ids"]]
    values = {
        "length/mean": float(np.mean(lengths)),
        "distinct/1": distinct(texts, 1),
        "distinct/2": distinct(texts, 2),
    }
    for name, ratios_BS in (log_ratios or {}).items():
        values |= named(f"kl/{name}", mean_interval(ratios_BS))
    for prefix, scores_BS in score_arrays(rows).items():
        found = mean_interval(scores_BS)
        head = prefix or "reward/"
        values |= dict(zip((f"{head}mean", f"{head}low", f"{head}high"), found))
        for name, theirs in (opponents or {}).items():
            won_BS = wins(scores_BS, score_arrays(theirs)[prefix])
            values |= named(f"{prefix}win/{name}", rate_interval(won_BS))
    for (judge, name), won_BS in (judged or {}).items():
        values |= named(f"judge/{judge}/win/{name}", rate_interval(won_BS))
    return values


def score_arrays(rows: Rows) -> dict[str, np.ndarray]:
    """Returns {"": rewards_BS, "score/LABEL/": scores_BS}, those that there are."""
    found = {}
    if "rewards" in rows[0]:
        found[""] = np.asarray([row["rewards"] for row in rows], np.float64)
    for label in rows[0].get("scores", {}):
        scores = [row["scores"][label] for row in rows]
        found[f"score/{label}/"] = np.asarray(scores, np.float64)
    return found


def named(name: str, interval: Interval) -> dict[str, float]:
    """Returns {name: mean, name/low: ..., name/high: ...}."""
    low, high = f"{name}/low", f"{name}/high"
    return {name: interval.mean, low: interval.low, high: interval.high}
