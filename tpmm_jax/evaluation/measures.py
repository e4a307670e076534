"""From a policy's answers to its measures: the keys of an iteration's row."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from tpmm_jax.data.records import Rollout
from tpmm_jax.evaluation.cuts import cut_share
from tpmm_jax.evaluation.diversity import distinct
from tpmm_jax.evaluation.intervals import Interval, mean_interval, rate_interval
from tpmm_jax.evaluation.win_rates import wins


def measure(
    answers: Sequence[Rollout],
    *,
    eos_ids: Collection[int],
    opponents: Mapping[str, Sequence[Rollout]] | None = None,
    log_ratios: Mapping[str, np.ndarray] | None = None,
    judged: Mapping[tuple[str, str], np.ndarray] | None = None,
) -> dict[str, float]:
    """Returns {name: number} of one policy's answers to one set of prompts.

    Args:
      answers: to each prompt.
      eos_ids: ids that end an answer; one without them was cut: length/cut.
      opponents: by name the answers of other policies to the same prompts: win/NAME.
      log_ratios: by name log p(answer) of the policy minus that of another, nats,
        [B, R]: kl/NAME. Their mean is the KL divergence where answers are drawn at
        temperature 1 from the whole vocabulary.
      judged: by (judge, name) our share of wins, [B, R].
    """
    texts = [text for row in answers for text in row.responses]
    ids = [ids for row in answers for ids in row.response_ids]
    values = {
        "length/mean": float(np.mean([len(row) for row in ids])),
        "length/cut": cut_share(ids, eos_ids),
        "distinct/1": distinct(texts, 1),
        "distinct/2": distinct(texts, 2),
    }
    for name, ratios_BR in (log_ratios or {}).items():
        values |= name_interval(f"kl/{name}", mean_interval(ratios_BR))
    for prefix, scores_BR in score_arrays(answers).items():
        found = mean_interval(scores_BR)
        head = prefix or "reward/"
        values |= dict(zip((f"{head}mean", f"{head}low", f"{head}high"), found))
        for name, theirs in (opponents or {}).items():
            won_BR = wins(scores_BR, score_arrays(theirs)[prefix])
            values |= name_interval(f"{prefix}win/{name}", rate_interval(won_BR))
    if all(row.spread is not None for row in answers):
        spread = [x for row in answers for x in row.spread or ()]
        values["reward/spread"] = float(np.mean(spread))
    for (judge, name), won_BR in (judged or {}).items():
        values |= name_interval(f"judge/{judge}/win/{name}", rate_interval(won_BR))
    return values


def score_arrays(answers: Sequence[Rollout]) -> dict[str, np.ndarray]:
    """Returns {"": rewards_BR, "score/LABEL/": scores_BR}, those that there are."""
    found = {}
    if answers[0].rewards is not None:
        found[""] = np.asarray([row.rewards for row in answers], np.float64)
    for label in answers[0].scores:
        scores = [row.scores[label] for row in answers]
        found[f"score/{label}/"] = np.asarray(scores, np.float64)
    return found


def name_interval(name: str, interval: Interval) -> dict[str, float]:
    """Returns {name: mean, name/low: ..., name/high: ...}."""
    low, high = f"{name}/low", f"{name}/high"
    return {name: interval.mean, low: interval.low, high: interval.high}
