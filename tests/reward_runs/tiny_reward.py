"""A reward run of seconds: the tiny random Gemma, pairs whose better side is even."""

import functools
import io
import json
import pathlib
import tempfile
from typing import Any

import numpy as np
import tiny_run

from tpmm_jax.commands import train_reward
from tpmm_jax.config import (
    MergeBackConfig,
    ModelSource,
    RewardConfig,
    RewardEvaluationConfig,
)
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.log.console import RunConsole
from tpmm_jax.models.upcycling import UpcyclingConfig
from tpmm_jax.steps import TrainConfig

build_model = tiny_run.build_model


def pairs(count: int = 24, rejected: int = 3, seed: int = 5) -> list[dict[str, Any]]:
    """Prompts, each with a chosen answer and so many rejected ones."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        prompt = " ".join(rng.choice(tiny_run.WORDS, size=3)) + f" w{number % 28} "
        chosen = " ".join(f"w{2 * rng.integers(14)}" for _ in range(4))
        for _ in range(rejected):
            words = [f"w{2 * rng.integers(14) + 1}" for _ in range(rng.integers(2, 6))]
            rows.append(
                {"prompt": prompt, "chosen": chosen, "rejected": " ".join(words)}
            )
    return rows


@functools.cache
def files() -> tuple[str, str]:
    """The paths of pairs, and of others; made once a process."""
    folder = pathlib.Path(tempfile.mkdtemp())
    paths = []
    for name, rows in (("pairs", pairs()), ("others", pairs(6, 1, seed=9))):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(str(path))
    return paths[0], paths[1]


def get_config(**changes: Any) -> RewardConfig:
    own, others = files()
    fields: dict[str, Any] = {
        "model": ModelSource(source="tiny_reward:build_model", remat=False),
        "data": RewardDataConfig(pairs=own),
        "train": TrainConfig(
            learning_rate=3e-3, batch_size=8, epochs=2, checkpoint_every=2
        ),
        "evaluation": RewardEvaluationConfig(
            holdout_fraction=0.3, every=4, sets={"others": others}
        ),
    }
    return RewardConfig(**{**fields, **changes})


def get_mixture(**changes: Any) -> RewardConfig:
    """The same with experts, which are merged back in a few steps."""
    fields: dict[str, Any] = {
        "experts": UpcyclingConfig(count=3, top_k=2),
        "merge": MergeBackConfig(steps=3, batch_size=8, holdout=0.3),
    }
    return get_config(**{**fields, **changes})


def go(workdir: pathlib.Path, make: Any = get_config, **changes: Any) -> str:
    """Runs a configuration; returns what was printed."""
    out = io.StringIO()
    train_reward.run(make(**changes), workdir, RunConsole(out, width=80))
    return out.getvalue()
