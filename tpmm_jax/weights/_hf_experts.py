"""config.json's mixtures of experts, of the hub's families and of ours, and back."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tpmm_jax.models.config import LIMITS, ExpertsConfig, ModelConfig
from tpmm_jax.models.families import Family
from tpmm_jax.weights._hf_windows import is_count

# The model_type of a mixture with a shared expert, which no other library knows: under
# the family's own they would load the shared expert alone.
OWN = "tpmm_experts"
BASE = "base_model_type"


def as_family(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config.json of ours as its family's, the experts aside."""
    if hf.get("model_type") != OWN:
        return dict(hf)
    kept = {name: x for name, x in hf.items() if name not in (BASE, "experts")}
    return kept | {"model_type": hf.get(BASE)}


def read_experts(
    hf: Mapping[str, Any], family: Family, problems: list[str]
) -> ExpertsConfig | None:
    """Returns the experts of a config.json; what is wrong goes to problems."""
    if hf.get("model_type") == OWN:
        return _read_own(hf, problems)
    named = family.experts
    if named is None:
        return None
    # transformers writes the number under Mixtral's name, the hub under the family's.
    other = hf.get("num_local_experts", named.default_count)
    count = hf.get(named.count, other)
    if "num_local_experts" in hf and other != count:
        problems.append(f"num_local_experts = {other!r}, {named.count} = {count!r}")
    top_k = hf.get("num_experts_per_tok", named.default_top_k)
    renormalise = True
    if named.renormalise is not None:
        renormalise = hf.get(named.renormalise, False)
        if not isinstance(renormalise, bool):
            problems.append(
                f"{named.renormalise} = {renormalise!r}: wanted true or false"
            )
    if not _fit(count, top_k, named.count, "num_experts_per_tok", problems):
        return None
    return ExpertsConfig(count=count, top_k=top_k, renormalise=renormalise)


def _fit(
    count: Any, top_k: Any, count_name: str, top_k_name: str, problems: list[str]
) -> bool:
    """Whether the numbers are a mixture's; what is wrong goes to problems."""
    most, before = LIMITS["expert_count"], len(problems)
    if not is_count(count, most):
        problems.append(
            f"{count_name} = {count!r}: wanted a whole number from 1 to {most:,}"
        )
    elif not is_count(top_k, count):
        problems.append(
            f"{top_k_name} = {top_k!r}: wanted a whole number from 1 to {count}, "
            f"{count_name}"
        )
    return len(problems) == before


def _read_own(hf: Mapping[str, Any], problems: list[str]) -> ExpertsConfig | None:
    content, before = hf.get("experts"), len(problems)
    names = {"count", "top_k", "shared", "renormalise", "layers"}
    if not isinstance(content, dict) or content.keys() != names:
        problems.append(f"experts = {content!r}: wanted an object of {sorted(names)}")
        return None
    _fit(content["count"], content["top_k"], "experts.count", "experts.top_k", problems)
    shared, layers = content["shared"], content["layers"]
    if not isinstance(shared, int | float) or not 0 < shared < 1:
        problems.append(f"experts.shared = {shared!r}: wanted a number in (0, 1)")
    if not isinstance(content["renormalise"], bool):
        problems.append(
            f"experts.renormalise = {content['renormalise']!r}: wanted true or false"
        )
    if (
        not isinstance(layers, list)
        or not all(isinstance(x, bool) for x in layers)
        or (layers and (len(layers) != hf.get("num_hidden_layers") or not any(layers)))
    ):
        problems.append(
            f"experts.layers = {layers!r}: wanted true or false for each layer, one of "
            "them true, or [] for all"
        )
    if len(problems) > before:
        return None
    return ExpertsConfig(**{**content, "layers": tuple(layers)})


def write_experts(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Returns the fields of config.json that say what the experts are."""
    experts, named = config.experts, family.experts
    if experts is None:
        return {}
    if named is None:
        own = asdict(experts) | {"layers": list(experts.layers)}
        return {"model_type": OWN, BASE: config.family, "experts": own}
    content = {named.count: experts.count, "num_experts_per_tok": experts.top_k}
    if named.renormalise is not None:
        content[named.renormalise] = experts.renormalise
    if named.width is not None:
        content[named.width] = config.mlp_width
    return content
