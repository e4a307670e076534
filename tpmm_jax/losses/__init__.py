"""Log-probabilities and preference losses."""

from tpmm_jax.losses.config import LossConfig, title_of
from tpmm_jax.losses.gradients import (
    Batch,
    CoupledLoss,
    LossFn,
    Metrics,
    coupled_gradients,
    gradients,
)
from tpmm_jax.losses.inputs import PairLogProbs, completion_sums
from tpmm_jax.losses.logprobs import log_probs
from tpmm_jax.losses.objective import (
    Objective,
    keep_reference_terms,
    loss_at_zero,
    pair_loss,
    pair_metrics,
)
from tpmm_jax.losses.preference import (
    coupled_loss,
    init_loss_state,
    loss_inputs,
    pair_log_probs,
    pair_scores,
    preference_loss,
    with_state,
)
from tpmm_jax.losses.record import Loss
from tpmm_jax.losses.registry import LOSSES, is_coupled, names_of, sees_batch
from tpmm_jax.losses.reward import (
    RewardLossConfig,
    bradley_terry,
    pair_rewards,
    pair_rewards_and_aux,
    reward_loss,
)

__all__ = [
    "LOSSES",
    "Batch",
    "CoupledLoss",
    "Loss",
    "LossConfig",
    "LossFn",
    "Metrics",
    "Objective",
    "PairLogProbs",
    "RewardLossConfig",
    "bradley_terry",
    "completion_sums",
    "coupled_gradients",
    "coupled_loss",
    "gradients",
    "init_loss_state",
    "is_coupled",
    "keep_reference_terms",
    "log_probs",
    "loss_at_zero",
    "loss_inputs",
    "names_of",
    "pair_log_probs",
    "pair_loss",
    "pair_metrics",
    "pair_rewards",
    "pair_rewards_and_aux",
    "pair_scores",
    "preference_loss",
    "reward_loss",
    "sees_batch",
    "title_of",
    "with_state",
]
