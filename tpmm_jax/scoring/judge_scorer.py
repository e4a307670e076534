"""A judge as a scorer: each answer against the other answers of its prompt."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from tpmm_jax.evaluation import judged_wins
from tpmm_jax.rewards import NamedScorer, Raters, ScorerConfig, Verdicts
from tpmm_jax.scoring.judge import ModelJudge
from tpmm_jax.scoring.judge_config import JUDGE


@dataclass(frozen=True)
class Shares:
    """What a judge makes of B prompts with R answers each.

    Attributes:
      mean_BR: each answer's mean share of wins over the others of its prompt.
      unread: of each prompt the replies that could not be read, and are ties.
      disagreed: of each prompt, of how many two answers the judge prefers the same
        place in both orders.
    """

    mean_BR: Float64[np.ndarray, "B R"]
    unread: list[list[str]]
    disagreed: list[int]


@dataclass(frozen=True, eq=False)
class JudgeScorer:
    """Rates answers with a model that judges; see ``mean_shares``.

    Attributes:
      judge: of two answers.
    """

    judge: ModelJudge

    def __call__(
        self,
        prompts: Sequence[Any],
        responses: Sequence[Sequence[str]],
        ended: Sequence[Sequence[bool]] | None = None,
    ) -> Float64[np.ndarray, "B R"]:
        """Returns rewards in [0, 1].

        Args:
          prompts: B texts or conversations.
          responses: of each prompt R answers, as texts.
          ended: not read: a judge sees the words alone.
        """
        return self.shares(prompts, responses).mean_BR

    def shares(
        self, prompts: Sequence[Any], responses: Sequence[Sequence[str]]
    ) -> Shares:
        """Returns rewards with what speaks against them; replies are kept."""
        return mean_shares(self.judge, prompts, responses)


def mean_shares(
    judge: Callable[..., Verdicts],
    prompts: Sequence[Any],
    responses: Sequence[Sequence[str]],
) -> Shares:
    """Compares each two answers to a prompt in both orders.

    R answers take R (R - 1) questions; those of one text are ties and not asked about.
    The mean over a prompt is 0.5, and so is the share of a single answer.

    Args:
      judge: called with as many prompts, first and second answers as there are
        questions, all at once.
    """
    spots = [
        (b, r, s)
        for b, some in enumerate(responses)
        for r, s in itertools.combinations(range(len(some)), 2)
        if some[r] != some[s]
    ]
    found = Shares(
        np.full((len(prompts), len(responses[0]) if responses else 0), 0.5),
        [[] for _ in prompts],
        [0 for _ in prompts],
    )
    if not spots:
        return found
    about = [prompts[b] for b, _, _ in spots]
    ours = [responses[b][r] for b, r, _ in spots]
    theirs = [responses[b][s] for b, _, s in spots]
    said = judge([*about, *about], [*ours, *theirs], [*theirs, *ours])
    first_P, second_P = np.split(said.share_B, 2)
    won_P = judged_wins(first_P[:, None], second_P[:, None])[:, 0]
    each = 1 / (len(responses[0]) - 1)
    unread = np.zeros(len(about) * 2, bool) if said.unread_B is None else said.unread_B
    for place, (b, r, s) in enumerate(spots):
        more = (won_P[place] - 0.5) * each
        found.mean_BR[b, r] += more
        found.mean_BR[b, s] -= more
        leans = (first_P[place] - 0.5) * (second_P[place] - 0.5)
        found.disagreed[b] += int(leans > 0)
        for at in (place, place + len(spots)):
            if unread[at]:
                found.unread[b].append(said.replies[at] if said.replies else "")
    return found


def labelling_judge(scorer: NamedScorer | None) -> JudgeScorer | None:
    """Returns the judge that a scorer is, or the first of several; None without one."""
    parts = () if scorer is None else scorer.parts
    judges = [x.function for x in parts if isinstance(x.function, JudgeScorer)]
    return judges[0] if judges else None


def measures(scorer: NamedScorer) -> bool:
    """Whether rewards tell policies apart: a judge's have the same mean for all."""
    return not all(isinstance(one.function, JudgeScorer) for one in scorer.parts)


def measuring(raters: Raters) -> Raters:
    """Returns what measures policies."""
    if raters.scorer is None or measures(raters.scorer):
        return raters
    return replace(raters, scorer=None)


def relative_warning(config: ScorerConfig) -> str:
    """Returns what a run is told whose labels are a judge's, or ""."""
    judges = [name for name in config.names if name.startswith(JUDGE)]
    if not judges:
        return ""
    if len(judges) == len(config.names):
        where, so = "is", "reward/mean and win/theta_0 are not measured"
    else:
        where, so = "has", "reward/mean and win/theta_0 are those of the other scorers"
    return (
        f"scorer.name {where} {judges[0]}, which compares the answers to a prompt with "
        f"one another and has the same mean for every policy: {so}. Name independent "
        "ones under evaluation.judges or evaluation.scorers to see whether policies "
        "become better"
    )
