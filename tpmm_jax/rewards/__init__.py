"""What labels the rollouts, what judges answers, and how labels become pairs."""

from tpmm_jax.rewards.combination import (
    Average,
    Combination,
    Rating,
    Scale,
    load_scorer,
    rate,
    with_scale,
)
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
    member_fields,
    whole_field,
)
from tpmm_jax.rewards.scorer import (
    Find,
    Known,
    Limits,
    NamedScorer,
    Scorer,
    find_function,
    import_object,
)
from tpmm_jax.rewards.scorer_config import (
    SCALE,
    ScorerConfig,
    check_names,
    read_name,
    says,
    stored_scorer,
)
from tpmm_jax.rewards.surroundings import left_alone

__all__ = [
    "COLUMN",
    "JUDGES",
    "LABEL",
    "MARGINS",
    "SCALE",
    "SCORER",
    "SCORERS",
    "Average",
    "Combination",
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
    "Rating",
    "Scale",
    "Scorer",
    "ScorerConfig",
    "Verdicts",
    "check_label",
    "check_names",
    "find_function",
    "find_judge_function",
    "import_object",
    "left_alone",
    "load_raters",
    "load_scorer",
    "make_pairs",
    "member_fields",
    "rate",
    "read_name",
    "says",
    "stored_scorer",
    "whole_field",
    "with_scale",
]
