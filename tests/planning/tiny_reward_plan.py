"""A reward model's config that is planned and never run."""

from tpmm_jax.config import ModelSource, RewardConfig
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.models.upcycling import UpcyclingConfig
from tpmm_jax.steps import TrainConfig


def get_config() -> RewardConfig:
    return RewardConfig(
        model=ModelSource(source="org/gated"),
        data=RewardDataConfig(pairs="org/pairs", max_length=32),
        experts=UpcyclingConfig(count=2),
        train=TrainConfig(learning_rate=1e-5, batch_size=8),
    )
