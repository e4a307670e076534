"""Log-probabilities and preference losses."""

from tpmm_jax.losses.gradients import Batch, LossFn, Metrics, gradients
from tpmm_jax.losses.logprobs import (
    CHUNK_BYTES,
    log_probs,
    pair_log_probs,
    sequence_log_probs,
)
from tpmm_jax.losses.pairwise import (
    LOSSES,
    LossConfig,
    PairLogProbs,
    loss_at_zero,
    loss_slope,
    pair_metrics,
)

__all__ = [
    "CHUNK_BYTES",
    "LOSSES",
    "Batch",
    "LossConfig",
    "LossFn",
    "Metrics",
    "PairLogProbs",
    "gradients",
    "log_probs",
    "loss_at_zero",
    "loss_slope",
    "pair_log_probs",
    "pair_metrics",
    "sequence_log_probs",
]
