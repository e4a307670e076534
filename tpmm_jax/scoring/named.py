"""A reward model as a scorer that labels, with what scorer.options says of it."""

import datetime
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tpmm_jax.errors import BadInput, nearest
from tpmm_jax.rewards import NamedScorer
from tpmm_jax.scoring.reward_scorer import RewardScorer
from tpmm_jax.store.files import read_json
from tpmm_jax.weights.hub import REWARD as REWARD_MODELS
from tpmm_jax.weights.hub import TRAJECTORY_STEP
from tpmm_jax.weights.source import Model

# The prefix of names that no module may have: what follows is where a model is found.
REWARD = "reward:"
# What scorer.options may say of a reward model.
OPTIONS = ("batch_size", "chat", "dtype", "revision", "base")


def name_model(
    name: str,
    model: Model,
    chat: bool | None,
    options: Mapping[str, Any],
    date: datetime.date | None,
) -> NamedScorer:
    """Returns a reward model as a scorer that was seen to tell answers apart."""
    size = {k: options[k] for k in ("batch_size",) if k in options}
    scorer = RewardScorer(model, chat=chat, date=date, **size)
    _refuse_constant(scorer)
    return NamedScorer(name, scorer, digest=scorer.digest)


def trained_with_chat(origin: Mapping[str, Any]) -> bool | None:
    """Whether a model of tpmm train_reward learned texts with the chat template.

    WORKDIR/merged/RULE is one too. None: not known, or conversations were given.
    """
    source = str(origin.get("source", ""))
    if match := TRAJECTORY_STEP.fullmatch(source):
        workdir = pathlib.Path(match["workdir"] or ".")
    else:
        folder = pathlib.Path(source).absolute().parent
        workdir = folder.parent
        if folder.name != "merged" or not (workdir / REWARD_MODELS).is_dir():
            return None
    return read_json(workdir / "config.json").get("data", {}).get("chat")


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises BadInput for an option that reward models do not have."""
    for key in options:
        if key not in OPTIONS:
            raise BadInput(
                f"scorer.options.{key}: {name} is a reward model, which has no such "
                f"option; it has {', '.join(OPTIONS)}{nearest(key, OPTIONS)}"
            )


def _refuse_constant(scorer: RewardScorer) -> None:
    """Raises BadInput if a model gives everything the same reward."""
    prompts = ["Say something."] if scorer.chat else ["This is", "Once upon a time"]
    answers = [" good.", " bad, and rather long at that.", " a b c d e f g", " 1 2 3"]
    rewards_BR = scorer(prompts, [answers] * len(prompts))
    if np.ptp(rewards_BR) == 0:
        raise BadInput(
            f"it gives every answer the reward {rewards_BR.flat[0]:.6g}; its head was "
            "never trained, or its weights were lost"
        )
