"""What labels the rollouts, what judges answers, and how labels become pairs."""

from tpmm_jax.rewards.judges import Judge, NamedJudge
from tpmm_jax.rewards.pairing import PairingConfig, PairPlaces, make_pairs
from tpmm_jax.rewards.raters import (
    JUDGES,
    SCORER,
    SCORERS,
    Raters,
    check_label,
    load_raters,
)
from tpmm_jax.rewards.scorer import (
    NamedScorer,
    Scorer,
    ScorerConfig,
    import_object,
    load_scorer,
)
from tpmm_jax.rewards.surroundings import left_alone

__all__ = [
    "JUDGES",
    "SCORER",
    "SCORERS",
    "Judge",
    "NamedJudge",
    "NamedScorer",
    "PairPlaces",
    "PairingConfig",
    "Raters",
    "Scorer",
    "ScorerConfig",
    "check_label",
    "import_object",
    "left_alone",
    "load_raters",
    "load_scorer",
    "make_pairs",
]
