"""The reward model that the study's margins come from: stories260k with a head.

pairs.py trains one for each tier and seed, on pairs that no policy is trained on.
"""

import pathlib
import sys

from tpmm_jax.config import ModelSource, RewardConfig, RewardEvaluationConfig
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.steps import TrainConfig

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "configs"))
import stories260k


def get_config() -> RewardConfig:
    """Returns the configuration; data.pairs and the seed are set by pairs.py."""
    return RewardConfig(
        model=ModelSource(source=stories260k.model_directory(), remat=False),
        data=RewardDataConfig(pairs="reward.jsonl"),
        train=TrainConfig(learning_rate=5e-4, batch_size=32, epochs=2),
        evaluation=RewardEvaluationConfig(holdout_fraction=0.2, every=10),
    )
