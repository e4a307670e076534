"""What labels the rollouts, and how labels become pairs."""

from tpmm_jax.rewards.pairing import LabelledPair, PairingConfig, make_pairs
from tpmm_jax.rewards.scorer import (
    Scorer,
    ScorerConfig,
    import_object,
    load_scorer,
    probe,
    score,
)

__all__ = [
    "LabelledPair",
    "PairingConfig",
    "Scorer",
    "ScorerConfig",
    "import_object",
    "load_scorer",
    "make_pairs",
    "probe",
    "score",
]
