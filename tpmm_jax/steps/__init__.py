"""The jitted steps, and the routine that trains with them. Pure functions.

A train step is built from any ``losses.LossFn`` and the abstract tree of what is
trained: a policy or its adapters here, a reward model alike.
"""

from tpmm_jax.steps.config import TrainConfig
from tpmm_jax.steps.fit import fit
from tpmm_jax.steps.log_probs import (
    pair_check_step,
    pair_log_probs_step,
    token_log_probs_step,
)
from tpmm_jax.steps.optimizer import is_matrix, make_learning_rate
from tpmm_jax.steps.preference import preference_gradient_norm_step, preference_step
from tpmm_jax.steps.reward import (
    pair_rewards_step,
    reward_gradient_norm_step,
    reward_step,
    rewards_and_routing_step,
    rewards_step,
)
from tpmm_jax.steps.state import (
    Frozen,
    TrainState,
    abstract_state,
    init_state,
    shardings,
)
from tpmm_jax.steps.train import language_model_loss, make_train_step

__all__ = [
    "Frozen",
    "TrainConfig",
    "TrainState",
    "abstract_state",
    "fit",
    "init_state",
    "is_matrix",
    "language_model_loss",
    "make_learning_rate",
    "make_train_step",
    "pair_check_step",
    "pair_log_probs_step",
    "pair_rewards_step",
    "preference_gradient_norm_step",
    "preference_step",
    "reward_gradient_norm_step",
    "reward_step",
    "rewards_and_routing_step",
    "rewards_step",
    "shardings",
    "token_log_probs_step",
]
