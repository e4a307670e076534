"""The merged reference: weighted sums of checkpoints, and the rules that weigh."""

from tpmm_jax.merging.config import NO_REFERENCE, ReferenceConfig
from tpmm_jax.merging.deltas import Deltas
from tpmm_jax.merging.expert_rules import (
    EXPERT_RULES,
    ExpertMergeConfig,
    ExpertPairs,
    ExpertsContext,
    choose_experts,
    expert_pairs,
)
from tpmm_jax.merging.experts import (
    dense_config,
    dense_decoder,
    merge_params,
    pair_margins,
)
from tpmm_jax.merging.learned import HeldOut
from tpmm_jax.merging.listwise import RatedSamples, fit_listwise
from tpmm_jax.merging.margins import LEAST_PROMPTS, Margins, nothing_learned
from tpmm_jax.merging.rounding import FAINT, faint_text, signal_text
from tpmm_jax.merging.rules import RULES, MergeContext, choose
from tpmm_jax.merging.trees import (
    group_names,
    merge_parts,
    one_hot,
    one_hot_index,
    policy_is_reference,
    running_mean,
    signal_to_rounding,
    weighted_sum,
)

__all__ = [
    "EXPERT_RULES",
    "FAINT",
    "LEAST_PROMPTS",
    "NO_REFERENCE",
    "RULES",
    "Deltas",
    "ExpertMergeConfig",
    "ExpertPairs",
    "ExpertsContext",
    "HeldOut",
    "Margins",
    "MergeContext",
    "RatedSamples",
    "ReferenceConfig",
    "choose",
    "choose_experts",
    "dense_config",
    "dense_decoder",
    "expert_pairs",
    "faint_text",
    "fit_listwise",
    "group_names",
    "merge_params",
    "merge_parts",
    "nothing_learned",
    "one_hot",
    "one_hot_index",
    "pair_margins",
    "policy_is_reference",
    "running_mean",
    "signal_text",
    "signal_to_rounding",
    "weighted_sum",
]
