"""Several runs beside each other, and paired differences between their rewards."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpmm_jax.evaluation.intervals import Interval, paired_interval
from tpmm_jax.report.gather import RunData
from tpmm_jax.report.samples import same_prompts
from tpmm_jax.rewards import SCALE, says, stored_scorer
from tpmm_jax.store.digests import read_listed_json

# Of more runs than this, each is compared with the first only.
ALL_PAIRS = 4


@dataclass(frozen=True)
class Difference:
    """Reward of one run minus that of another, by prompt.

    Attributes:
      ours, theirs: labels.
      answers: whose they are, and to which prompts if not the runs' own.
      prompts: how many.
      interval: the mean with its 95 % interval over prompts; None where there is no
        difference.
      problem: why there is no difference; "" if there is one.
    """

    ours: str
    theirs: str
    answers: str
    prompts: int = 0
    interval: Interval | None = None
    problem: str = ""


def last_common(runs: Sequence[RunData]) -> int | None:
    """Returns the last iteration that all runs have finished; None if there is none."""
    finished = [{row["iteration"] for row in run.iterations} for run in runs]
    return max(set.intersection(*finished), default=None)


def differences(runs: Sequence[RunData], iteration: int) -> list[Difference]:
    """Returns paired differences of the reward at one iteration, by prompt set."""
    pairs = list(itertools.combinations(reversed(runs), 2))
    if len(runs) > ALL_PAIRS:
        pairs = [(run, runs[0]) for run in runs[1:]]
    return [
        _difference(ours, theirs, of_set, iteration)
        for of_set in dict.fromkeys(name for run in runs for name in run.rewarded())
        for ours, theirs in pairs
        # Whether a run measured the mean of its policies is its own affair.
        if of_set != "ship" or all("ship" in run.rewarded() for run in (ours, theirs))
    ]


def _difference(
    ours: RunData, theirs: RunData, of_set: str, iteration: int
) -> Difference:
    rows = [run.samples(iteration, of_set) for run in (ours, theirs)]
    answers = f"the last policy, {of_set}" if of_set else "the last policy"
    if of_set == "ship":
        answers = "the mean of the policies"
    labels = (ours.label, theirs.label, answers)
    if not all(rows):
        return Difference(*labels, problem="one of them has no samples")
    if any(row.rewards is None for found in rows for row in found):
        return Difference(*labels, problem="one of them has no rewards")
    if not same_prompts(*rows):
        return Difference(*labels, problem="the evaluation prompts differ")
    counts = [{len(row.responses) for row in found} for found in rows]
    if any(len(count) > 1 for count in counts):
        return Difference(*labels, problem="the number of samples per prompt varies")
    scorers = [stored_scorer(run.config.get("scorer")) for run in (ours, theirs)]
    if says(scorers[0]) != says(scorers[1]):
        return Difference(*labels, problem="the labelling scorers differ")
    if scorers[0].scaled and _scale(ours) != _scale(theirs):
        problem = f"their rewards have other centres and scales ({SCALE})"
        return Difference(*labels, problem=problem)
    rewards = [np.array([row.rewards for row in found], float) for found in rows]
    if not all(np.isfinite(values).all() for values in rewards):
        return Difference(*labels, problem="a reward is not finite")
    return Difference(*labels, len(rows[0]), paired_interval(*rewards))


def _scale(run: RunData) -> Any:
    """Returns where a run's rewards are centred and clipped."""
    path = run.workdir / SCALE
    return read_listed_json(path) if path.exists() else None
