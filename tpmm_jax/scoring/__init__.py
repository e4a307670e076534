"""Our own models as scorers, and what the names of scorers and judges stand for."""

from tpmm_jax.scoring.loading import (
    JUDGE,
    REWARD,
    check_context,
    load_raters,
    load_scorer,
)
from tpmm_jax.scoring.reward_scorer import RewardScorer
from tpmm_jax.scoring.row_rewards import row_rewards

__all__ = [
    "JUDGE",
    "REWARD",
    "RewardScorer",
    "check_context",
    "load_raters",
    "load_scorer",
    "row_rewards",
]
