"""A run's configuration: composed of the rooms' own, read, typed and checked."""

from tpmm_jax.config.fields import check_types, flatten, set_field
from tpmm_jax.config.loading import load_config
from tpmm_jax.config.model import ModelSource, make_decoder
from tpmm_jax.config.reward import (
    HELD_OUT,
    REWARD_MAY_CHANGE,
    MergeBackConfig,
    RewardConfig,
    RewardEvaluationConfig,
)
from tpmm_jax.config.schema import (
    MAY_CHANGE,
    Config,
    EvaluationConfig,
    RolloutConfig,
    StoreConfig,
    to_dict,
)

__all__ = [
    "HELD_OUT",
    "MAY_CHANGE",
    "REWARD_MAY_CHANGE",
    "Config",
    "EvaluationConfig",
    "MergeBackConfig",
    "ModelSource",
    "RewardConfig",
    "RewardEvaluationConfig",
    "RolloutConfig",
    "StoreConfig",
    "check_types",
    "flatten",
    "load_config",
    "make_decoder",
    "set_field",
    "to_dict",
]
