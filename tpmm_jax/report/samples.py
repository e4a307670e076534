"""Sample answers of several policies to the same prompts, chosen by a fixed rule.

The first answer to each of the first prompts of the file; then the prompts at which the
reward of the first answer rose and fell most, from theta_0 to the last policy. Nothing
is chosen by its text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tpmm_jax.data.records import Rollout
from tpmm_jax.report.figures import theta
from tpmm_jax.report.gather import RunData

FIRST, EXTREMES = 3, 2
# Longer texts are cut on the page, and say so.
MOST = 2_000


@dataclass(frozen=True)
class Answer:
    """One policy's answer.

    Attributes:
      who: such as "θ₂".
      text: at most MOST characters of it.
      cut: characters that are left out.
      reward: by the labelling scorer; None without one.
      better: whether the reward rose over that of the first column; None if equal.
    """

    who: str
    text: str
    cut: int
    reward: float | None
    better: bool | None


@dataclass(frozen=True)
class Sample:
    """One prompt with one answer per policy, and why it is shown."""

    why: str
    number: int
    prompt: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Samples:
    """The samples of one prompt set.

    Attributes:
      of_set: "" is the run's own.
      rule: in words, how they were chosen.
    """

    of_set: str
    rule: str
    samples: Sequence[Sample]


def run_samples(run: RunData) -> list[Samples]:
    """Returns samples of theta_0, theta_{t-1} and the last policy, by prompt set."""
    if not run.iterations:
        return []
    last = run.last["iteration"]
    steps = sorted({0, max(0, last - 1), last})
    found = []
    for of_set in run.sets():
        columns = [(theta(t), run.samples(t, of_set)) for t in steps]
        if of_set == "ship":
            columns = [(theta(t), run.samples(t)) for t in sorted({0, last})]
            mean = f"the mean of {theta(0)} to {theta(last)}"
            columns.append((mean, run.samples(last, of_set)))
        found.append(_chosen(of_set, columns))
    return [samples for samples in found if samples.samples]


def common_samples(runs: Sequence[RunData], iteration: int) -> list[Samples]:
    """Returns samples of theta_0 and of every run's policy at one iteration."""
    columns = [(f"{theta(0)}, {runs[0].label}", runs[0].samples(0))]
    columns += [
        (f"{theta(iteration)}, {run.label}", run.samples(iteration)) for run in runs
    ]
    samples = _chosen("", columns)
    return [samples] if samples.samples else []


def same_prompts(first: Sequence[Rollout], second: Sequence[Rollout]) -> bool:
    """Whether two evaluations asked the same, row by row."""
    return [(row.prompt, row.prompt_ids) for row in first] == [
        (row.prompt, row.prompt_ids) for row in second
    ]


def _chosen(of_set: str, columns: Sequence[tuple[str, list[Rollout]]]) -> Samples:
    columns = [(who, rows) for who, rows in columns if rows]
    if not columns:
        return Samples(of_set, "", [])
    base = columns[0][1]
    columns = [(who, rows) for who, rows in columns if same_prompts(base, rows)]
    size, last = len(base), columns[-1]
    why = dict.fromkeys(range(min(FIRST, size)), "")
    rule = f"The first {len(why)} of {size:,} evaluation prompts"
    if len(columns) > 1 and size > FIRST and base[0].rewards and last[1][0].rewards:
        changes = [_change(theirs, ours) or 0.0 for theirs, ours in zip(base, last[1])]
        rest = sorted(range(len(why), size), key=lambda i: changes[i])
        falls = [i for i in rest[:EXTREMES] if changes[i] < 0]
        rises = [i for i in rest[::-1][:EXTREMES] if changes[i] > 0]
        why |= dict.fromkeys(rises, "greatest rise")
        why |= dict.fromkeys(falls, "greatest fall")
        rule += (
            f", then those of the others whose reward rose and fell most from "
            f"{columns[0][0]} to {last[0]}, up to {EXTREMES} each"
        )
    rule += "; the first sample of each. Nothing was chosen by its text."
    return Samples(of_set, rule, [_sample(i, why[i], columns) for i in why])


def _sample(
    place: int, why: str, columns: Sequence[tuple[str, list[Rollout]]]
) -> Sample:
    base = columns[0][1][place]
    answers = []
    for who, rows in columns:
        text, rewards = rows[place].responses[0], rows[place].rewards
        reward = rewards[0] if rewards else None
        change = _change(base, rows[place])
        better = change > 0 if change else None
        cut = max(0, len(text) - MOST)
        answers.append(Answer(who, text[:MOST], cut, reward, better))
    return Sample(why, place, base.prompt, answers)


def _change(before: Rollout, after: Rollout) -> float | None:
    """Of the first answer's reward; None where one has none."""
    if before.rewards is None or after.rewards is None:
        return None
    return after.rewards[0] - before.rewards[0]
