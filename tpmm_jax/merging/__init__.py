"""The merged reference: weighted sums of checkpoints, and the rules that weigh."""

from tpmm_jax.merging.config import NO_REFERENCE, ReferenceConfig
from tpmm_jax.merging.deltas import Deltas
from tpmm_jax.merging.learned import HeldOut
from tpmm_jax.merging.rounding import FAINT, faint_text, signal_text
from tpmm_jax.merging.rules import RULES, MergeContext, choose
from tpmm_jax.merging.trees import (
    group_names,
    one_hot,
    one_hot_index,
    policy_is_reference,
    signal_to_rounding,
    weighted_sum,
)

__all__ = [
    "FAINT",
    "NO_REFERENCE",
    "RULES",
    "Deltas",
    "HeldOut",
    "MergeContext",
    "ReferenceConfig",
    "choose",
    "faint_text",
    "group_names",
    "one_hot",
    "one_hot_index",
    "policy_is_reference",
    "signal_text",
    "signal_to_rounding",
    "weighted_sum",
]
