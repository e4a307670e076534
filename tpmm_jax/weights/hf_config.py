"""Hugging Face's config.json to ModelConfig and back; the unknown is refused.

Both spellings are read: today's (rope_parameters, dtype, layer_types) and the
hub's older one (rope_theta, rope_scaling, rope_local_base_freq, torch_dtype,
sliding_window_pattern). What a field's absence means is transformers' word.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tpmm_jax.errors import BadInput
from tpmm_jax.models.config import LIMITS, ModelConfig
from tpmm_jax.models.families import FAMILIES, Family, make_config
from tpmm_jax.weights._hf_experts import as_family, read_experts, write_experts
from tpmm_jax.weights._hf_fields import NEUTRAL, field_problem
from tpmm_jax.weights._hf_rope import is_positive, read_ropes, write_ropes
from tpmm_jax.weights._hf_windows import is_count, read_windows, write_windows

# What every config.json says, and what it may leave out, with our names.
REQUIRED = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "intermediate_size": "mlp_width",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}
OPTIONAL = {
    "max_position_embeddings": "max_positions",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}

READ = {
    *REQUIRED, *OPTIONAL, "bos_token_id", "eos_token_id", "head_dim", "hidden_act",
    "hidden_activation", "layer_types", "model_type", "num_key_value_heads",
    "pad_token_id", "rope_parameters", "rope_scaling", "rope_theta", "sliding_window",
}  # fmt: skip

# Fields that may be null, which is not the same as absent.
SOFTCAPS = {
    "attn_logit_softcapping": "attention_softcap",
    "final_logit_softcapping": "final_softcap",
}

IDS = "a token id or a list of them"

# What ends the name of a class in config.json's "architectures".
CAUSAL, CLASSIFIER = "ForCausalLM", "ForSequenceClassification"

# Theirs by our names.
ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "silu": "silu"}


def parse_config(hf: Mapping[str, Any], origin: str) -> ModelConfig:
    """Returns the ModelConfig of a config.json's content.

    Args:
      hf: the JSON object.
      origin: the file's name, for messages.

    Raises:
      BadInput: an unknown model_type or field, a missing field, or a value that
        this library does not compute; all problems are named at once.
    """
    given, hf = hf, as_family(hf)
    family = _family(hf, origin)
    problems = _wrong_values(hf, family)
    for name, value in hf.items():
        if name in family.fields:
            continue
        if problem := field_problem(name, value, READ):
            problems.append(problem)
    problems += _wrong_activations(hf, family)
    problems += _wrong_head(hf)
    window, windowed = read_windows(hf, family, problems)
    rope, local_rope = read_ropes(hf, family, problems)
    experts = read_experts(given, family, problems)
    problems += _wrong_layers_of_experts(hf, family)
    if problems:
        raise BadInput(
            f"{origin} cannot be loaded faithfully:\n  " + "\n  ".join(problems)
        )
    return make_config(
        str(hf["model_type"]),
        **{ours: hf[theirs] for theirs, ours in REQUIRED.items()} | _width(hf, family),
        num_kv_heads=_kv_heads(hf, family),
        head_dim=hf.get("head_dim"),
        rope=rope,
        local_rope=local_rope,
        window=window,
        windowed_layers=windowed,
        bos_id=hf.get("bos_token_id", family.bos_id),
        eos_ids=as_ids(hf.get("eos_token_id", list(family.eos_ids)), origin),
        pad_id=hf.get("pad_token_id", family.pad_id),
        output="reward" if is_classifier(hf) else "tokens",
        experts=experts,
        **_optional(hf, family),
    )


def is_classifier(hf: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model with a classification head."""
    names = hf.get("architectures")
    names = names if isinstance(names, list) else [names]
    return any(str(name).endswith(CLASSIFIER) for name in names)


def _wrong_head(hf: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with the width of a classification head."""
    labels = hf.get("id2label")
    width = hf.get("num_labels", len(labels) if isinstance(labels, dict) else 2)
    if not is_classifier(hf) or width == 1:
        return []
    return [f"the head has {width} labels; a reward model has one (num_labels 1)"]


def _width(hf: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Returns the width of experts, where they have one of their own."""
    if family.experts is None or family.experts.width is None:
        return {}
    given = hf.get(family.experts.width, family.experts.default_width)
    return {"mlp_width": given}


def _wrong_layers_of_experts(hf: Mapping[str, Any], family: Family) -> list[str]:
    """Returns what says that some layers of a mixture of experts are dense."""
    if "mlp_only_layers" not in family.fields:
        return []
    every, dense = hf.get("decoder_sparse_step", 1), hf.get("mlp_only_layers")
    if every == 1 and not dense:
        return []
    return [
        f"decoder_sparse_step = {every!r}, mlp_only_layers = {dense!r}: only models "
        "whose layers all have experts are supported (1 and [])"
    ]


def _family(hf: Mapping[str, Any], origin: str) -> Family:
    kind = hf.get("model_type")
    if kind == "gemma3":
        raise BadInput(
            f"{origin}: model_type is 'gemma3', a model of images and text; this "
            "library runs the text models ('gemma3_text'). Save the text part with "
            "transformers: whole = Gemma3ForConditionalGeneration.from_pretrained("
            "folder); text = Gemma3ForCausalLM(whole.config.text_config); "
            "text.model = whole.model.language_model; text.tie_weights(); "
            "text.save_pretrained(new_folder); and copy the tokenizer's files"
        )
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise BadInput(
            f"{origin}: model_type is {kind!r}; supported are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[kind]


def _optional(hf: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Returns the fields of ModelConfig that a config.json may leave out."""
    found: dict[str, Any] = {}
    scalar = "query_pre_attn_scalar"
    for theirs, ours in {**OPTIONAL, scalar: scalar}.items():
        if hf.get(theirs) is not None:
            found[ours] = hf[theirs]
    for theirs, ours in SOFTCAPS.items():
        if theirs in hf and theirs in family.fields:
            found[ours] = hf[theirs]
    if hf.get("attention_bias"):
        found |= {"qkv_bias": True, "output_bias": True}
    if hf.get("mlp_bias"):
        found["mlp_bias"] = True
    return found


def _kv_heads(hf: Mapping[str, Any], family: Family) -> int:
    given = hf.get("num_key_value_heads", family.num_kv_heads)
    return hf["num_attention_heads"] if given is None else given


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


def one_or_all(ids: Sequence[int]) -> int | list[int] | None:
    """Returns ids as an eos_token_id; see ``as_ids``."""
    return ids[0] if len(ids) == 1 else list(ids) or None


def _count(most: int) -> tuple[str, Callable[[Any], bool]]:
    """Returns what is wanted of a size, in words and as a check."""
    return f"a whole number from 1 to {most:,}", lambda x: is_count(x, most)


def _is_even(value: Any) -> bool:
    return is_count(value, LIMITS["head_dim"]) and value % 2 == 0


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_ids(value: Any) -> bool:
    if value is None:
        return True
    return all(map(_is_id, value if isinstance(value, list) else [value]))


def _wrong_values(hf: Mapping[str, Any], family: Family) -> list[str]:
    """Returns what is absent, of another type, or cannot go together."""
    ids = ("a token id", _is_id)
    wanted: dict[str, tuple[str, Callable[[Any], bool]]] = {
        **{theirs: _count(LIMITS[ours]) for theirs, ours in REQUIRED.items()},
        "num_key_value_heads": _count(LIMITS["num_kv_heads"]),
        "head_dim": ("a positive even number: rotary positions need one", _is_even),
        "max_position_embeddings": _count(LIMITS["max_positions"]),
        "rms_norm_eps": ("a positive number", is_positive),
        "tie_word_embeddings": ("true or false", _is_bool),
        "query_pre_attn_scalar": _count(2**31 - 1),
        "moe_intermediate_size": _count(LIMITS["mlp_width"]),
        **dict.fromkeys(SOFTCAPS, ("a positive number or null", is_positive)),
        **dict.fromkeys(("attention_bias", "mlp_bias"), ("true or false", _is_bool)),
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
        elif name in NEUTRAL and name not in family.fields:
            # Named with what is supported.
            continue
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
    kv = heads if "num_key_value_heads" in wrong else _kv_heads(hf, family)
    if heads % kv:
        problems.append(
            f"num_attention_heads = {heads} is not a multiple of num_key_value_heads "
            f"= {kv}" + ("" if hf.get("num_key_value_heads") else ", the default")
        )
    if {"hidden_size", "head_dim"} & wrong or (hf.get("head_dim") or family.head_dim):
        return problems
    if width % heads or width // heads % 2:
        problems.append(
            f"hidden_size = {width} over num_attention_heads = {heads} is not "
            "an even whole number, and there is no head_dim"
        )
    return problems


def _wrong_activations(hf: Mapping[str, Any], family: Family) -> list[str]:
    """Returns the activations that are not the family's."""
    problems = []
    for field in ("hidden_act", "hidden_activation"):
        name = hf.get(field)
        # The first Gemma releases say "gelu" and mean its tanh approximation.
        if name is None or (family is FAMILIES["gemma"] and name == "gelu"):
            continue
        if name != ACTIVATIONS[family.activation]:
            problems.append(f"{field} = {name!r}: wanted {family.activation}")
    return problems


def write_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """Returns the config.json content that transformers reads.

    The older spelling stands beside today's (rope_theta, rope_scaling,
    sliding_window_pattern, max_window_layers), so that older transformers and other
    engines read the same model.
    """
    family = FAMILIES[config.family]
    content: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for theirs, ours in REQUIRED.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": ACTIVATIONS[config.activation],
        **{theirs: getattr(config, ours) for theirs, ours in OPTIONAL.items()},
        **write_ropes(config),
        **write_windows(config, family),
        "bos_token_id": config.bos_id,
        "eos_token_id": one_or_all(config.eos_ids),
        "pad_token_id": config.pad_id,
        "torch_dtype": dtype,
    }
    optional = {
        "attention_bias": config.output_bias,
        "mlp_bias": config.mlp_bias,
        "hidden_activation": content["hidden_act"],
        "query_pre_attn_scalar": config.query_pre_attn_scalar or config.head_dim,
        **{theirs: getattr(config, ours) for theirs, ours in SOFTCAPS.items()},
    }
    if config.output == "reward":
        # transformers writes no num_labels: it counts these.
        content["architectures"] = [architecture_of(family, CLASSIFIER)]
        content |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    content |= write_experts(config, family)
    return content | {n: x for n, x in optional.items() if n in family.fields}


def architecture_of(family: Family, ending: str) -> str:
    """Returns the name of transformers' class of a family with another head."""
    name = family.architecture.removesuffix(CAUSAL)
    text = "Text" if family is FAMILIES["gemma3_text"] else ""
    return f"{name}{text}{ending}"
