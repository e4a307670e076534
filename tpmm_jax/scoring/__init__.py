"""Our own models as scorers and judges, and what names of both stand for."""

from tpmm_jax.scoring.judge import ModelJudge
from tpmm_jax.scoring.judge_config import JUDGE, JudgeConfig
from tpmm_jax.scoring.judge_scorer import (
    JudgeScorer,
    labelling_judge,
    measures,
    measuring,
    relative_warning,
)
from tpmm_jax.scoring.loading import (
    check_context,
    load_raters,
    load_scorer,
)
from tpmm_jax.scoring.named import REWARD
from tpmm_jax.scoring.reward_scorer import RewardScorer
from tpmm_jax.scoring.row_rewards import row_rewards

__all__ = [
    "JUDGE",
    "REWARD",
    "JudgeConfig",
    "JudgeScorer",
    "ModelJudge",
    "RewardScorer",
    "check_context",
    "labelling_judge",
    "load_raters",
    "load_scorer",
    "measures",
    "measuring",
    "relative_warning",
    "row_rewards",
]
