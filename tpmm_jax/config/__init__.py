"""A run's configuration: composed of the rooms' own, read, typed and checked."""

from tpmm_jax.config.fields import check_types, flatten, set_field
from tpmm_jax.config.schema import (
    MAY_CHANGE,
    Config,
    EvaluationConfig,
    ModelSource,
    RolloutConfig,
    StoreConfig,
    load_config,
    to_dict,
)

__all__ = [
    "MAY_CHANGE",
    "Config",
    "EvaluationConfig",
    "ModelSource",
    "RolloutConfig",
    "StoreConfig",
    "check_types",
    "flatten",
    "load_config",
    "set_field",
    "to_dict",
]
