"""Log-probabilities and preference losses."""

from tpmm_jax.losses.config import COUPLED, REFERENCE_FREE, LossConfig
from tpmm_jax.losses.gradients import (
    Batch,
    CoupledLoss,
    LossFn,
    Metrics,
    coupled_gradients,
    gradients,
)
from tpmm_jax.losses.inputs import Moving, PairLogProbs, completion_sums
from tpmm_jax.losses.logprobs import CHUNK_BYTES, log_probs
from tpmm_jax.losses.objective import (
    LossState,
    coupled_loss,
    init_loss_state,
    loss_inputs,
    pair_log_probs,
    pair_scores,
    preference_loss,
    with_state,
)
from tpmm_jax.losses.registry import (
    LOSSES,
    loss_at_zero,
    pair_loss,
    pair_metrics,
    referenced,
)

__all__ = [
    "CHUNK_BYTES",
    "COUPLED",
    "LOSSES",
    "REFERENCE_FREE",
    "Batch",
    "CoupledLoss",
    "LossConfig",
    "LossFn",
    "LossState",
    "Metrics",
    "Moving",
    "PairLogProbs",
    "completion_sums",
    "coupled_gradients",
    "coupled_loss",
    "gradients",
    "init_loss_state",
    "log_probs",
    "loss_at_zero",
    "loss_inputs",
    "pair_log_probs",
    "pair_loss",
    "pair_metrics",
    "pair_scores",
    "preference_loss",
    "referenced",
    "with_state",
]
