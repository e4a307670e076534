"""What labels the rollouts, what judges answers, and how labels become pairs."""

from tpmm_jax.rewards.judges import Judge, NamedJudge, Verdicts
from tpmm_jax.rewards.margins import COLUMN, LABEL, MARGINS, MadpoConfig
from tpmm_jax.rewards.pairing import PairingConfig, PairPlaces, make_pairs
from tpmm_jax.rewards.raters import (
    JUDGES,
    SCORER,
    SCORERS,
    FindJudge,
    Raters,
    check_label,
    find_judge_function,
    load_raters,
)
from tpmm_jax.rewards.scorer import (
    Find,
    Known,
    Limits,
    NamedScorer,
    Scorer,
    ScorerConfig,
    find_function,
    import_object,
    load_scorer,
)
from tpmm_jax.rewards.surroundings import left_alone

__all__ = [
    "COLUMN",
    "JUDGES",
    "LABEL",
    "MARGINS",
    "SCORER",
    "SCORERS",
    "Find",
    "FindJudge",
    "Judge",
    "Known",
    "Limits",
    "MadpoConfig",
    "NamedJudge",
    "NamedScorer",
    "PairPlaces",
    "PairingConfig",
    "Raters",
    "Scorer",
    "ScorerConfig",
    "Verdicts",
    "check_label",
    "find_function",
    "find_judge_function",
    "import_object",
    "left_alone",
    "load_raters",
    "load_scorer",
    "make_pairs",
]
