"""A policy's answers against those of others: judged in both orders, and measured.

Nothing here knows of a run: the loop and ``tpmm evaluate`` share it.
"""

import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tpmm_jax.axes import CHOSEN, REJECTED
from tpmm_jax.data.records import Judgement, PairRow, Rollout
from tpmm_jax.evaluation import (
    Evaluated,
    accuracy_interval,
    judged_wins,
    measure,
    name_interval,
)
from tpmm_jax.evaluation.measures import score_arrays
from tpmm_jax.loop.voice import Voice
from tpmm_jax.rewards import NamedJudge, Verdicts
from tpmm_jax.store.records import append_records, resume_records

Answers = Sequence[Rollout]
# A larger share of a judge's replies that cannot be read is warned of.
MAX_UNREAD = 0.2


@dataclass(frozen=True)
class Contest:
    """Answers of one policy to one set of prompts, and those that they meet.

    Attributes:
      set: the prompts' name among the judgements.
      opponents: by name answers of other policies; sample s meets sample s. Those of
        one policy under two names are one object, and judged once.
      log_ratios: by name log p(answer) of the policy minus that of another model, nats,
        [B, R].
    """

    set: str
    answers: Answers
    opponents: Mapping[str, Answers] = field(default_factory=dict)
    log_ratios: Mapping[str, np.ndarray] = field(default_factory=dict)

    def met_as(self) -> dict[str, str]:
        """Returns {name of an opponent: the name under which it is judged}."""
        first: dict[int, str] = {}
        return {
            name: first.setdefault(id(theirs), name)
            for name, theirs in self.opponents.items()
        }


def judge_contests(
    path: pathlib.Path | None,
    contests: Sequence[Contest],
    judges: Mapping[str, NamedJudge],
    *,
    batch_size: int,
    voice: Voice,
    title: str,
) -> list[Judgement]:
    """Returns one judgement per answer: by contest, opponent, judge, prompt, sample.

    They are appended to ``path`` a batch at a time, and those that are there are not
    asked for again. Without judges, or where nobody meets, there is none.

    Args:
      batch_size: prompts whose answers a judge gets at once.
    """
    batches = [
        (contest, against, label, range(at, min(at + batch_size, len(contest.answers))))
        for contest in contests
        for against in dict.fromkeys(contest.met_as().values())
        for label in judges
        for at in range(0, len(contest.answers), batch_size)
    ]
    sizes = [len(c.answers[0].responses) * len(places) for c, _, _, places in batches]
    ends = np.cumsum([0, *sizes]).tolist()
    judgements = resume_records(
        path, Judgement, lambda count: max(end for end in ends if end <= count)
    )
    done = len(judgements)
    if done == ends[-1]:
        return judgements
    with voice.phase(title, ends[-1], "answers", done=done) as advance:
        for contest, against, label, places in batches[ends.index(done) :]:
            batch = judge_batch(contest, against, label, judges[label], places)
            append_records(path, batch, len(judgements))
            judgements += batch
            advance(len(batch))
    return judgements


def judge_batch(
    contest: Contest, against: str, label: str, judge: NamedJudge, places: range
) -> list[Judgement]:
    """Returns what a judge says of the answers to some prompts, in both orders."""
    ours, theirs = contest.answers, contest.opponents[against]
    spots = [(i, s) for i in places for s in range(len(ours[i].responses))]
    prompts = [ours[i].prompt for i, _ in spots]
    our_texts = [ours[i].responses[s] for i, s in spots]
    their_texts = [theirs[i].responses[s] for i, s in spots]
    ours_first = judge.verdicts(prompts, our_texts, their_texts)
    theirs_first = judge.verdicts(prompts, their_texts, our_texts)
    first_B, second_B = ours_first.share_B, theirs_first.share_B
    win_B = judged_wins(first_B[:, None], second_B[:, None])[:, 0]
    return [
        Judgement(
            set=contest.set,
            judge=label,
            against=against,
            prompt=i,
            sample=s,
            first=float(first_B[b]),
            second=float(second_B[b]),
            win=float(win_B[b]),
            **_words(ours_first, theirs_first, b),
        )
        for b, (i, s) in enumerate(spots)
    ]


def _words(first: Verdicts, second: Verdicts, b: int) -> dict[str, Any]:
    """Returns what a model said of one answer in both orders; {} of a function."""
    found: dict[str, Any] = {}
    if first.unread_B is not None and second.unread_B is not None:
        found["unread"] = int(first.unread_B[b]) + int(second.unread_B[b])
    if first.replies is not None and second.replies is not None:
        found["replies"] = [first.replies[b], second.replies[b]]
    return found


def judge_wins(
    judgements: Iterable[Judgement], name: str, against: str
) -> dict[str, np.ndarray]:
    """Returns {judge: wins [B, R]} of one set against one opponent."""
    found: dict[str, dict[int, list[float]]] = {}
    for one in judgements:
        if (one.set, one.against) == (name, against):
            by_prompt = found.setdefault(one.judge, {})
            by_prompt.setdefault(one.prompt, []).append(one.win)
    return {
        judge: np.asarray([by_prompt[i] for i in sorted(by_prompt)])
        for judge, by_prompt in found.items()
    }


def judge_faults(judgements: Iterable[Judgement], contest: Contest) -> dict[str, float]:
    """Returns what of one contest's judgements speaks against each judge.

    Returns:
      judge/LABEL/disagreed, the share of answers of which it says in one order that
      they are better and in the other that they are worse: it goes by the place, which
      it must where both are one text, so those count as agreed; and of models
      judge/LABEL/unread, the share of their replies that cannot be read.
    """
    by_judge: dict[str, list[Judgement]] = {}
    for one in judgements:
        if one.set == contest.set:
            by_judge.setdefault(one.judge, []).append(one)
    values = {}
    for judge, rows in by_judge.items():
        # The text in the first place is preferred in both orders, or in neither.
        leans = [
            (row.first - 0.5) * (row.second - 0.5) > 0 and not _met_itself(contest, row)
            for row in rows
        ]
        values[f"judge/{judge}/disagreed"] = float(np.mean(leans))
        unread = [row.unread for row in rows if row.unread is not None]
        if unread:
            values[f"judge/{judge}/unread"] = float(np.mean(unread)) / 2
    return values


def _met_itself(contest: Contest, row: Judgement) -> bool:
    """Whether an answer was compared with the same text."""
    ours, theirs = contest.answers, contest.opponents[row.against]
    return (
        ours[row.prompt].responses[row.sample]
        == theirs[row.prompt].responses[row.sample]
    )


def unread_warning(
    measures: Mapping[str, Mapping[str, Any]], where: str = "judgements.jsonl, --output"
) -> str:
    """Returns a warning of judges of whose replies many say nothing, or "".

    Args:
      measures: by whose answers they are, what ``measure_contest`` gives.
      where: what holds the replies.
    """
    large = [
        f"{name}, judge {key.split('/')[1]}: {100 * share:.0f} %"
        for name, values in measures.items()
        for key, share in values.items()
        if key.startswith("judge/") and key.endswith("/unread") and share > MAX_UNREAD
    ]
    if not large:
        return ""
    return (
        f"replies that cannot be read and count as ties: {'; '.join(large)}. They draw "
        f"win rates to 50 %: look at them ({where}), then change judge.template, "
        "judge.max_new_tokens or what is read as a verdict (judge.first, judge.second, "
        "judge.tie), or take another model"
    )


def measure_contest(
    contest: Contest, judgements: Sequence[Judgement], eos_ids: Collection[int]
) -> dict[str, float]:
    """Returns {name: number} of one policy on one set; see ``evaluation.measure``."""
    judged = {
        (judge, name): wins_BR
        for name, met in contest.met_as().items()
        for judge, wins_BR in judge_wins(judgements, contest.set, met).items()
    }
    values = measure(
        contest.answers,
        eos_ids=eos_ids,
        opponents=contest.opponents,
        log_ratios=contest.log_ratios,
        judged=judged,
    )
    return values | judge_faults(judgements, contest)


def observe(
    name: str,
    answers: Answers,
    wins: Mapping[str, np.ndarray],
    judges: Iterable[str],
    kl: float | None,
    same_tokens: bool = True,
) -> Evaluated:
    """Returns what the watch sees of a policy.

    Args:
      wins: by judge, against the first policy, [B, R]. That one itself has none: it
        wins half of the time.
      judges: labels of all judges.
      kl: to the first policy, nats per response.
      same_tokens: whether lengths can be compared with the first policy's.
    """
    arrays = score_arrays(answers)
    half_BR = np.full((len(answers), len(answers[0].responses)), 0.5)
    independent = {f"scorer {k.split('/')[1]}": x for k, x in arrays.items() if k}
    independent |= {f"judge {label}": wins.get(label, half_BR) for label in judges}
    lengths = [len(ids) for row in answers for ids in row.response_ids]
    length = float(np.mean(lengths)) if same_tokens else None
    return Evaluated(name, arrays.get(""), length, kl, independent)


def preference_accuracy(
    pairs: Sequence[PairRow], policy_PN: np.ndarray, anchor_PN: np.ndarray
) -> dict[str, float]:
    """Returns how often, and by how much, a policy prefers what is chosen.

    Args:
      pairs: P pairs; those of one prompt count together in the interval.
      policy_PN, anchor_PN: log-probs of (chosen, rejected), nats: of the policy, and
        of the one that it is measured against.
    """
    ratios_PN = policy_PN.astype(np.float64) - anchor_PN
    margin_P = ratios_PN[:, CHOSEN] - ratios_PN[:, REJECTED]
    accuracy = accuracy_interval(margin_P, [tuple(pair.prompt_ids) for pair in pairs])
    margin = {"heldout/margin": float(np.mean(margin_P))}
    return name_interval("heldout/accuracy", accuracy) | margin
