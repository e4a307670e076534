"""Hugging Face's config.json to ModelConfig and back; the unknown is refused.

Both spellings are read: today's (rope_parameters, dtype, layer_types) and the
hub's older one (rope_theta, rope_scaling, torch_dtype).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from tpmm_jax.errors import BadInput
from tpmm_jax.models.config import ModelConfig, RopeConfig
from tpmm_jax.models.families import FAMILIES, Family, make_config

# Fields that say nothing about the forward pass.
IGNORED = {
    "_name_or_path", "architectures", "cache_implementation", "chunk_size_feed_forward",
    "dtype", "id2label", "initializer_range", "is_llama_config", "label2id",
    "max_window_layers", "output_attentions", "output_hidden_states", "pretraining_tp",
    "problem_type", "return_dict", "torch_dtype", "transformers.js_config",
    "transformers_version", "unsloth_fixed", "use_cache",
}  # fmt: skip

# Fields of which only these values are supported (None: "absent or null").
ONLY: dict[str, tuple[Any, ...]] = {
    "attention_bias": (None, False),
    "attention_dropout": (None, 0),
    "is_encoder_decoder": (None, False),
    "mlp_bias": (None, False),
    "partial_rotary_factor": (None, 1),
    "rope_interleaved": (None, False),
    "use_bidirectional_attention": (None, False),
    "use_sliding_window": (None, False),
}

REQUIRED = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
    "vocab_size",
)  # fmt: skip

READ = {
    *REQUIRED, "bos_token_id", "eos_token_id", "head_dim", "hidden_act",
    "hidden_activation", "layer_types", "max_position_embeddings", "model_type",
    "num_key_value_heads", "pad_token_id", "rms_norm_eps", "rope_parameters",
    "rope_scaling", "rope_theta", "sliding_window", "tie_word_embeddings",
}  # fmt: skip

IDS = "a token id or a list of them"

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}


def parse_config(hf: Mapping[str, Any], origin: str) -> ModelConfig:
    """Returns the ModelConfig of a config.json's content.

    Args:
      hf: the JSON object.
      origin: the file's name, for messages.

    Raises:
      BadInput: an unknown model_type or field, a missing field, or a value that
        this library does not compute; all problems are named at once.
    """
    family = FAMILIES.get(str(hf.get("model_type")))
    if family is None:
        raise BadInput(
            f"{origin}: model_type is {hf.get('model_type')!r}; supported are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    problems = _wrong_values(hf, family)
    for name, value in hf.items():
        if name in ONLY and value not in ONLY[name]:
            problems.append(f"{name} = {value!r} is not supported (only {ONLY[name]})")
        elif name not in ONLY and name not in IGNORED and name not in READ:
            problems.append(f"{name} = {value!r} is a field this library does not know")
    if hf.get("sliding_window") is not None and hf.get("use_sliding_window", True):
        problems.append(f"sliding_window = {hf['sliding_window']} is not supported")
    layers = [] if hf.get("layer_types") is None else hf["layer_types"]
    if not isinstance(layers, list) or any(x != "full_attention" for x in layers):
        problems.append("layer_types other than full_attention are not supported")
    activation = _activation(hf, family)
    if activation != family.activation:
        problems.append(
            f"hidden_act = {hf.get('hidden_act')!r}, hidden_activation = "
            f"{hf.get('hidden_activation')!r}: wanted {family.activation}"
        )
    rope = _rope(hf, family, problems)
    if problems:
        raise BadInput(
            f"{origin} cannot be loaded faithfully:\n  " + "\n  ".join(problems)
        )
    return make_config(
        str(hf["model_type"]),
        vocab_size=hf["vocab_size"],
        width=hf["hidden_size"],
        mlp_width=hf["intermediate_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        num_kv_heads=hf.get("num_key_value_heads") or hf["num_attention_heads"],
        head_dim=hf.get("head_dim"),
        max_positions=hf.get("max_position_embeddings"),
        norm_eps=hf.get("rms_norm_eps"),
        tie_embeddings=hf.get("tie_word_embeddings"),
        rope=rope,
        bos_id=hf.get("bos_token_id"),
        eos_ids=as_ids(hf.get("eos_token_id"), origin),
        pad_id=hf.get("pad_token_id"),
    )


def as_ids(value: Any, origin: str) -> tuple[int, ...]:
    """An eos_token_id (an id, a list of ids or null) as a tuple.

    Raises:
      BadInput: anything else; ``origin`` is the file's name.
    """
    if not _are_ids(value):
        raise BadInput(f"{origin}: eos_token_id = {value!r}: wanted {IDS}")
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_even(value: Any) -> bool:
    return _is_count(value) and value % 2 == 0


def _is_positive(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < value < math.inf


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_ids(value: Any) -> bool:
    if value is None:
        return True
    return all(map(_is_id, value if isinstance(value, list) else [value]))


def _wrong_values(hf: Mapping[str, Any], family: Family) -> list[str]:
    """Returns what is absent, of another type, or cannot go together."""
    ids = ("a token id", _is_id)
    count = ("a positive whole number", _is_count)
    wanted: dict[str, tuple[str, Callable[[Any], bool]]] = {
        **dict.fromkeys(REQUIRED, count),
        "num_key_value_heads": count,
        "head_dim": ("a positive even number: rotary positions need one", _is_even),
        "max_position_embeddings": count,
        "rms_norm_eps": ("a positive number", _is_positive),
        "tie_word_embeddings": ("true or false", lambda x: isinstance(x, bool)),
        "bos_token_id": ids,
        "pad_token_id": ids,
        "eos_token_id": (IDS, _are_ids),
    }
    problems, wrong = [], set()
    for name, (kind, good) in wanted.items():
        if hf.get(name) is None:
            if name in REQUIRED:
                problems.append(f"lacks {name}")
                wrong.add(name)
        elif not good(hf[name]):
            problems.append(f"{name} = {hf[name]!r}: wanted {kind}")
            wrong.add(name)
    return problems + _misfits(hf, family, wrong)


def _misfits(hf: Mapping[str, Any], family: Family, wrong: set[str]) -> list[str]:
    """Returns which sizes cannot go together, those in ``wrong`` left aside."""
    problems: list[str] = []
    if "num_attention_heads" in wrong:
        return problems
    heads, width = hf["num_attention_heads"], hf.get("hidden_size")
    kv = heads if "num_key_value_heads" in wrong else hf.get("num_key_value_heads")
    if heads % (kv or heads):
        problems.append(
            f"num_attention_heads = {heads} is no multiple of num_key_value_heads "
            f"= {kv}"
        )
    if {"hidden_size", "head_dim"} & wrong or (hf.get("head_dim") or family.head_dim):
        return problems
    if width % heads or width // heads % 2:
        problems.append(
            f"hidden_size = {width} over num_attention_heads = {heads} is no even "
            "whole number, and there is no head_dim"
        )
    return problems


def _activation(hf: Mapping[str, Any], family: Family) -> str | None:
    name = hf.get("hidden_activation") or hf.get("hidden_act")
    if name is None:
        return family.activation
    # The first Gemma releases say "gelu" and mean its tanh approximation.
    if family is FAMILIES["gemma"] and name == "gelu":
        return "gelu_tanh"
    return ACTIVATIONS.get(name) if isinstance(name, str) else None


def _rope(hf: Mapping[str, Any], family: Family, problems: list[str]) -> RopeConfig:
    scaling: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        given = hf.get(name)
        if given is not None and not isinstance(given, Mapping):
            problems.append(f"{name} = {given!r}: wanted an object")
        elif given:
            scaling = dict(given)
    theta = scaling.pop("rope_theta", None)
    theta = hf.get("rope_theta") if theta is None else theta
    theta = family.rope_theta if theta is None else theta
    if not _is_positive(theta):
        problems.append(f"rope_theta = {theta!r}: wanted a positive number")
        theta = family.rope_theta
    theta = float(theta)
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    if scaling.pop("partial_rotary_factor", 1) != 1:
        problems.append("rope partial_rotary_factor other than 1 is not supported")
    if kind == "default" and not scaling:
        return RopeConfig(theta=theta)
    names = {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_positions",
    }
    if kind != "llama3" or set(scaling) != set(names):
        problems.append(
            f"rope of type {kind!r} with {sorted(scaling)} is not supported (only "
            f"'default', and 'llama3' with {sorted(names)})"
        )
        return RopeConfig(theta=theta)
    wrong = {name: x for name, x in scaling.items() if not _is_positive(x)}
    if wrong:
        problems.append(f"rope of type 'llama3' with {wrong}: wanted positive numbers")
        return RopeConfig(theta=theta)
    values = {ours: scaling[theirs] for theirs, ours in names.items()}
    return RopeConfig(theta=theta, scaling="llama3", **values)


def write_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """Returns the config.json content that transformers reads.

    rope_theta and rope_scaling are written beside rope_parameters, so that older
    transformers and other engines read the same model.
    """
    family, rope = FAMILIES[config.family], config.rope
    parameters: dict[str, Any] = {"rope_type": "default"}
    if rope.scaling == "llama3":
        parameters = {
            "rope_type": "llama3",
            "factor": rope.factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_positions,
        }
    activation = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    eos = list(config.eos_ids)
    content: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": activation[config.activation],
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "rope_parameters": {"rope_theta": rope.theta, **parameters},
        "rope_theta": rope.theta,
        "rope_scaling": parameters if rope.scaling != "none" else None,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_id,
        "torch_dtype": dtype,
    }
    if config.family == "gemma":
        content["hidden_activation"] = content["hidden_act"]
    if config.family == "llama":
        content["mlp_bias"] = False
    return content
