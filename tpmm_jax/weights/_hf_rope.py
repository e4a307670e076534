"""config.json's rotary positions, in both spellings, as RopeConfig and back."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tpmm_jax.models.config import ModelConfig, RopeConfig
from tpmm_jax.models.families import Family
from tpmm_jax.weights._hf_windows import FULL, SLIDING

# Hugging Face's names of what each kind of scaling needs, and ours.
SCALINGS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_positions",
    },
}

LARGEST = float(np.finfo(np.float32).max)


def is_positive(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # An int of JSON may be beyond any float; what is computed is float32.
    return number and 0 < value <= LARGEST


def read_ropes(
    hf: Mapping[str, Any], family: Family, problems: list[str]
) -> tuple[RopeConfig, RopeConfig | None]:
    """Returns a config.json's rope and local_rope; what is wrong goes to problems."""
    scaling, parameters = (
        _object(hf.get(name), name, problems)
        for name in ("rope_scaling", "rope_parameters")
    )
    local: RopeConfig | None = None
    if family.local_rope is not None:
        strange = sorted(set(parameters) - {FULL, SLIDING})
        if strange:
            problems.append(
                f"rope_parameters with {strange}: wanted one object each for "
                f"{FULL} and {SLIDING}"
            )
        inner = parameters.get(SLIDING)
        default = hf.get("rope_local_base_freq")
        default = family.local_rope.theta if default is None else default
        local = _rope(hf, inner, default, f"rope of {SLIDING}", problems)
        parameters = _object(parameters.get(FULL), f"rope_parameters.{FULL}", problems)
    default = hf.get("rope_theta")
    default = family.rope.theta if default is None else default
    objects = [x for x in (scaling, parameters) if x] or [{}]
    found = [_rope(hf, x, default, "rope", problems) for x in objects]
    if len(found) == 2 and scaling.get("rope_theta") is None:
        # The older field never held the base.
        found[0] = replace(found[0], theta=found[1].theta)
    if len(found) == 2 and found[0] != found[1]:
        problems.append(
            f"rope_scaling = {scaling} and rope_parameters = {parameters} differ"
        )
    return found[-1], local


def _object(value: Any, what: str, problems: list[str]) -> dict[str, Any]:
    """Returns a copy of an object, empty for null or for what is none."""
    if value is not None and not isinstance(value, Mapping):
        problems.append(f"{what} = {value!r}: wanted an object")
    return dict(value) if isinstance(value, Mapping) else {}


def _rope(
    hf: Mapping[str, Any], given: Any, theta: Any, what: str, problems: list[str]
) -> RopeConfig:
    """Returns one RopeConfig; ``theta`` is the base where ``given`` has none."""
    scaling = _object(given, what, problems)
    inner = scaling.pop("rope_theta", None)
    theta = theta if inner is None else inner
    if not is_positive(theta):
        problems.append(f"{what}: rope_theta = {theta!r}: wanted a positive number")
        theta = 1.0
    older = scaling.pop("type", None)
    kind = scaling.pop("rope_type", None) or older or "default"
    if scaling.pop("partial_rotary_factor", 1) != 1:
        problems.append(f"{what}: partial_rotary_factor other than 1 is not supported")
    if kind == "llama3" and is_positive(hf.get("max_position_embeddings")):
        scaling.setdefault(
            "original_max_position_embeddings", hf["max_position_embeddings"]
        )
    if kind == "linear":
        # Of the other kinds; transformers passes over it here.
        scaling.pop("original_max_position_embeddings", None)
    problem = _scaling_problem(kind, scaling)
    if problem is not None:
        problems.append(f"{what} of type {kind!r} with {problem}")
        return RopeConfig(theta=float(theta))
    values = {ours: scaling[theirs] for theirs, ours in SCALINGS[kind].items()}
    values["scaling"] = "none" if kind == "default" else kind
    return RopeConfig(theta=float(theta), **values)


def _scaling_problem(kind: Any, scaling: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with the fields of a scaling of some kind, if anything."""
    names = SCALINGS.get(kind) if isinstance(kind, str) else None
    if names is None or set(scaling) != set(names):
        wanted = "; ".join(f"{kind!r} with {list(x)}" for kind, x in SCALINGS.items())
        return f"{sorted(scaling)} is not supported (only {wanted})"
    wrong = {name: x for name, x in scaling.items() if not is_positive(x)}
    if wrong:
        return f"{wrong}: wanted numbers > 0"
    if kind == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        return (
            f"low_freq_factor = {scaling['low_freq_factor']}: wanted less than "
            f"high_freq_factor = {scaling['high_freq_factor']}"
        )
    return None


def write_ropes(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json's fields of the rotary positions, in both spellings."""
    rope, local = config.rope, config.local_rope
    content = {
        "rope_parameters": {"rope_theta": rope.theta, **_scaling(rope)},
        "rope_theta": rope.theta,
        "rope_scaling": _scaling(rope) if rope.scaling != "none" else None,
    }
    if local is not None:
        content["rope_parameters"] = {
            FULL: content["rope_parameters"],
            SLIDING: {"rope_theta": local.theta, **_scaling(local)},
        }
        content["rope_local_base_freq"] = local.theta
    return content


def _scaling(rope: RopeConfig) -> dict[str, Any]:
    kind = "default" if rope.scaling == "none" else rope.scaling
    values = {theirs: getattr(rope, ours) for theirs, ours in SCALINGS[kind].items()}
    return {"rope_type": kind, **values}
