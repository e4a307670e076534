"""A judge as a scorer: each answer against the other answers of its prompt."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from tpmm_jax.evaluation import judged_wins
from tpmm_jax.rewards import ScorerConfig, Verdicts
from tpmm_jax.scoring.judge import ModelJudge
from tpmm_jax.scoring.judge_config import JUDGE


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
        return mean_shares(self.judge, prompts, responses)


def mean_shares(
    judge: Callable[..., Verdicts],
    prompts: Sequence[Any],
    responses: Sequence[Sequence[str]],
) -> Float64[np.ndarray, "B R"]:
    """Returns each answer's mean share of wins over the others of its prompt.

    Each two answers meet in both orders, so R answers take R (R - 1) questions. The
    mean over a prompt is 0.5, and so is the share of a single answer.

    Args:
      judge: called with as many prompts, first and second answers as there are
        questions, all at once.
    """
    B, R = len(prompts), len(responses[0]) if responses else 0
    if R < 2:
        return np.full((B, R), 0.5)
    spots = list(itertools.product(range(B), itertools.combinations(range(R), 2)))
    about = [prompts[b] for b, _ in spots]
    ours = [responses[b][r] for b, (r, _) in spots]
    theirs = [responses[b][s] for b, (_, s) in spots]
    said = judge([*about, *about], [*ours, *theirs], [*theirs, *ours])
    first_P, second_P = np.split(said.share_B, 2)
    won_P = judged_wins(first_P[:, None], second_P[:, None])[:, 0]
    total_BR = np.zeros((B, R))
    for (b, (r, s)), won in zip(spots, won_P):
        total_BR[b, r] += won
        total_BR[b, s] += 1 - won
    return total_BR / (R - 1)


def relative_warning(config: ScorerConfig) -> str:
    """Returns what a run is told whose labels are a judge's, or ""."""
    judges = [name for name in config.names if name.startswith(JUDGE)]
    if not judges:
        return ""
    alone = len(config.names) == 1
    where, what = ("is", "reward/mean") if alone else ("has", "its part of reward/mean")
    return (
        f"scorer.name {where} {judges[0]}, which compares the answers to a prompt with "
        f"one another: {what} is 0.5 for every policy, and win/theta_0 says "
        "nothing. Name independent ones under evaluation.judges or evaluation.scorers "
        "to see whether the policies become better"
    )
