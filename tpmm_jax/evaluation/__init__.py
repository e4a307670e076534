"""What an evaluation says, and how sure it is: pure statistics, no disk."""

from tpmm_jax.evaluation.best_of_n import (
    Turn,
    best_of,
    curve_sizes,
    find_turn,
    kl_bound,
    pick_chances,
)
from tpmm_jax.evaluation.cuts import MAX_CUT, cut_share, cut_warning
from tpmm_jax.evaluation.diversity import distinct
from tpmm_jax.evaluation.intervals import (
    Interval,
    accuracy_gain,
    accuracy_interval,
    joint_intervals,
    mean_interval,
    paired_interval,
    rate_interval,
)
from tpmm_jax.evaluation.measures import measure, name_interval
from tpmm_jax.evaluation.pair_rewards import (
    Bin,
    calibration_error,
    choice_accuracy,
    fit_temperature,
    measure_pairs,
    reliability,
)
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
    "Bin",
    "Evaluated",
    "Interval",
    "Turn",
    "accuracy_gain",
    "accuracy_interval",
    "best_of",
    "calibration_error",
    "choice_accuracy",
    "curve_sizes",
    "cut_share",
    "cut_warning",
    "distinct",
    "find_turn",
    "fit_temperature",
    "joint_intervals",
    "judged_wins",
    "kl_bound",
    "mean_interval",
    "measure",
    "measure_pairs",
    "name_interval",
    "paired_interval",
    "pick_chances",
    "rate_interval",
    "reliability",
    "watch",
    "wins",
]
