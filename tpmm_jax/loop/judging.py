"""Judgements: each judge on the answers of two policies, in both orders."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tpmm_jax.data.records import Judgement, Rollout
from tpmm_jax.evaluation import judged_wins
from tpmm_jax.log.console import RunConsole
from tpmm_jax.rewards import NamedJudge
from tpmm_jax.store.records import append_records, resume_records


@dataclass(frozen=True)
class Match:
    """Answers of one policy against those of another, to the same prompts.

    Attributes:
      set: the prompts' name.
      against: the other policy's name.
      ours, theirs: sample s meets sample s.
    """

    set: str
    against: str
    ours: Sequence[Rollout]
    theirs: Sequence[Rollout]


def judge_matches(
    path: pathlib.Path | None,
    matches: Sequence[Match],
    judges: Mapping[str, NamedJudge],
    *,
    batch_size: int,
    console: RunConsole,
    check: Callable[[], None],
    title: str,
) -> list[Judgement]:
    """Returns one judgement per answer: by match, judge, prompt, sample.

    They are appended to ``path`` a batch at a time, and those that are there are not
    asked for again.

    Args:
      batch_size: prompts whose answers a judge gets at once.
    """
    batches = [
        (match, label, range(at, min(at + batch_size, len(match.ours))))
        for match in matches
        for label in judges
        for at in range(0, len(match.ours), batch_size)
    ]
    sizes = [len(m.ours[0].responses) * len(places) for m, _, places in batches]
    ends = np.cumsum([0, *sizes]).tolist()
    judgements = resume_records(
        path, Judgement, lambda count: max(end for end in ends if end <= count)
    )
    if len(judgements) == ends[-1]:
        return judgements
    with console.phase(title, ends[-1], "answers") as bar:
        bar.advance(len(judgements))
        for match, label, places in batches[ends.index(len(judgements)) :]:
            batch = _judge_batch(match, label, judges[label], places)
            append_records(path, batch)
            judgements += batch
            bar.advance(len(batch))
            check()
    return judgements


def _judge_batch(
    match: Match, label: str, judge: NamedJudge, places: range
) -> list[Judgement]:
    spots = [(i, s) for i in places for s in range(len(match.ours[i].responses))]
    prompts = [match.ours[i].prompt for i, _ in spots]
    ours = [match.ours[i].responses[s] for i, s in spots]
    theirs = [match.theirs[i].responses[s] for i, s in spots]
    first_B, second_B = judge(prompts, ours, theirs), judge(prompts, theirs, ours)
    win_B = judged_wins(first_B[:, None], second_B[:, None])[:, 0]
    return [
        Judgement(
            set=match.set,
            judge=label,
            against=match.against,
            prompt=i,
            sample=s,
            first=float(first_B[b]),
            second=float(second_B[b]),
            win=float(win_B[b]),
        )
        for b, (i, s) in enumerate(spots)
    ]


def judge_wins(
    judgements: Sequence[Judgement], name: str
) -> dict[tuple[str, str], np.ndarray]:
    """Returns {(judge, against): wins [B, S]} of one set."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for one in judgements:
        if one.set == name:
            by_prompt = found.setdefault((one.judge, one.against), {})
            by_prompt.setdefault(one.prompt, []).append(one.win)
    return {
        key: np.asarray([by_prompt[i] for i in sorted(by_prompt)])
        for key, by_prompt in found.items()
    }
