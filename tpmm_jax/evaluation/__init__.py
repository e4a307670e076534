"""What an evaluation says, and how sure it is: pure statistics, no disk."""

from tpmm_jax.evaluation.cuts import MAX_CUT, cut_share, cut_warning
from tpmm_jax.evaluation.diversity import distinct
from tpmm_jax.evaluation.intervals import (
    Interval,
    accuracy_interval,
    mean_interval,
    paired_interval,
    rate_interval,
)
from tpmm_jax.evaluation.measures import measure, name_interval
from tpmm_jax.evaluation.watch import (
    MAX_KL_PER_TOKEN,
    MAX_LENGTH_RATIO,
    Evaluated,
    watch,
)
from tpmm_jax.evaluation.win_rates import judged_wins, wins

__all__ = [
    "MAX_CUT",
    "MAX_KL_PER_TOKEN",
    "MAX_LENGTH_RATIO",
    "Evaluated",
    "Interval",
    "accuracy_interval",
    "cut_share",
    "cut_warning",
    "distinct",
    "judged_wins",
    "mean_interval",
    "measure",
    "name_interval",
    "paired_interval",
    "rate_interval",
    "watch",
    "wins",
]
