"""adapter_config.json: the matrices a PEFT adapter changes, their rank and scale."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from tpmm_jax.errors import BadInput
from tpmm_jax.models import LoraConfig, ModelConfig
from tpmm_jax.models.lora import ALL_LINEAR, MOST_RANK, TARGETS
from tpmm_jax.weights._hf_rope import is_positive
from tpmm_jax.weights._hf_windows import is_count
from tpmm_jax.weights.names import names

# Fields that are read below, or that change nothing in what the adapter computes.
READ = (
    "peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "base_model_name_or_path", "revision", "task_type", "init_lora_weights",
    "lora_dropout",
)  # fmt: skip
NEUTRAL = (
    "auto_mapping", "peft_version", "inference_mode", "megatron_core",
    "qalora_group_size", "runtime_config",
    # Of the embedding and the head alone, which no adapter here may have.
    "ensure_weight_tying",
    # Of how training began; init_lora_weights tells whether the base was changed.
    "eva_config", "corda_config", "loftq_config", "lora_ga_config",
)  # fmt: skip
# Ways to begin that leave the base's weights alone.
PLAIN_INIT = (True, False, "gaussian", "orthogonal", "eva", "mica")
# Modules that PEFT can adapt and this library cannot; of the last two a model has one.
OUTSIDE = ("model.embed_tokens", "lm_head", "score")
# PEFT saves a classifier's head whole, under the first of these that the model has.
SEQ_CLS, HEADS = "SEQ_CLS", ("classifier", "score")
MERGE = "merge the adapter with PEFT's merge_and_unload and load the merged model"


class Adapter(NamedTuple):
    """The adapter of one matrix of one layer.

    Attributes:
      target: a key of TARGETS.
      config: its own rank and alpha.
    """

    target: str
    layer: int
    config: LoraConfig


def parse_adapter_config(fields: Mapping[str, Any], path: str) -> LoraConfig:
    """Returns r, lora_alpha and rsLoRA of an adapter_config.json; targets come later.

    Raises:
      BadInput: a field that is not understood, by name.
    """
    if fields.get("peft_type") != "LORA":
        raise BadInput(
            f"{path}: peft_type is {fields.get('peft_type')!r}; only LORA is read"
        )
    if fields.get("task_type") not in (None, "CAUSAL_LM", SEQ_CLS):
        raise BadInput(
            f"{path}: task_type is {fields['task_type']!r}; only CAUSAL_LM and, for "
            f"reward models, {SEQ_CLS}"
        )
    for name, value in fields.items():
        if name == "bias" and value == "none":
            continue
        if name == "modules_to_save" and isinstance(value, list) and saves_head(fields):
            # PEFT adds these names, again and again.
            value = [x for x in value if x not in HEADS]
        if name not in (*READ, *NEUTRAL) and value not in (None, False, "", {}, []):
            raise BadInput(
                f"{path}: {name} is {value!r}, which is not understood; {MERGE}"
            )
    init = fields.get("init_lora_weights", True)
    if (init.lower() if isinstance(init, str) else init) not in PLAIN_INIT:
        raise BadInput(
            f"{path}: init_lora_weights is {init!r}, which changes the base's weights "
            f"too; {MERGE}"
        )
    rslora = fields.get("use_rslora", False)
    if not isinstance(rslora, bool):
        raise BadInput(f"{path}: use_rslora is {rslora!r}; wanted true or false")
    return LoraConfig(
        rank=_rank(fields.get("r"), "r", path),
        alpha=_alpha(fields.get("lora_alpha"), "lora_alpha", path),
        rslora=rslora,
    )


def saves_head(fields: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is of a reward model, whose head PEFT saves."""
    task, saved = fields.get("task_type"), fields.get("modules_to_save")
    by_name = isinstance(saved, list) and "score" in saved
    return task == SEQ_CLS or (task is None and by_name)


def _rank(value: Any, name: str, path: str) -> int:
    if not is_count(value, MOST_RANK):
        raise BadInput(
            f"{path}: {name} is {value!r}; wanted a whole number from 1 to "
            f"{MOST_RANK:,}"
        )
    return value


def _alpha(value: Any, name: str, path: str) -> float:
    if not is_positive(value):
        raise BadInput(f"{path}: {name} is {value!r}; wanted a positive number")
    return float(value)


def modules(config: ModelConfig) -> dict[str, tuple[str, int]]:
    """Returns "model.layers.0.self_attn.q_proj" -> ("q_proj", 0) of every target."""
    table = {name.path: name for name in names(config)}
    return {
        tensor.removesuffix(".weight"): (short, layer)
        for short, target in TARGETS.items()
        for (layer,), tensor in table[target.path].tensors(config)
    }


def read_targets(
    fields: Mapping[str, Any], config: ModelConfig, path: str
) -> dict[str, Adapter]:
    """Returns the adapters by their module's name, as PEFT chooses them.

    Raises:
      BadInput: none, or a module that is not a linear layer.
    """
    usual = parse_adapter_config(fields, path)
    _check_choice(fields, path)
    absent = "lm_head" if saves_head(fields) else "score"
    for module in OUTSIDE:
        if module != absent and _is_chosen(fields, module, path):
            raise BadInput(
                f"{path}: target_modules takes in {module}; only the linear layers of "
                f"a {config.family} model are read ({', '.join(TARGETS)}); {MERGE}"
            )
    ranks = _pattern(fields, "rank_pattern", path)
    alphas = _pattern(fields, "alpha_pattern", path)
    found = {}
    for module, place in modules(config).items():
        if not _is_chosen(fields, module, path):
            continue
        own = replace(
            usual,
            rank=_rank(_of(ranks, module, usual.rank, path), "rank_pattern", path),
            alpha=_alpha(_of(alphas, module, usual.alpha, path), "alpha_pattern", path),
        )
        found[module] = Adapter(*place, own)
    if not found:
        raise BadInput(
            f"{path}: target_modules {fields.get('target_modules')!r} names no linear "
            f"layer of a {config.family} model ({', '.join(TARGETS)})"
        )
    return found


def joint_config(adapters: Iterable[Adapter]) -> LoraConfig:
    """Returns one config that holds them all.

    Its rank and alpha are those of the first one of the largest rank.
    """
    adapters = list(adapters)
    found = {adapter.target for adapter in adapters}
    short = [name for name in TARGETS if name in found]
    return replace(
        max((adapter.config for adapter in adapters), key=lambda own: own.rank),
        targets=ALL_LINEAR if len(short) == len(TARGETS) else ",".join(short),
    )


def _check_choice(fields: Mapping[str, Any], path: str) -> None:
    """Refuses target_modules and its companions in another form than PEFT's."""

    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(x, str) for x in value)

    wanted, layers = fields.get("target_modules"), fields.get("layers_to_transform")
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        value = fields.get(name)
        absent = value is None and name != "target_modules"
        if not absent and not isinstance(value, str) and not texts(value):
            raise BadInput(f"{path}: {name} is {value!r}; wanted a list or a text")
    numbers = layers if isinstance(layers, list) else [layers]
    if layers is not None and not all(type(x) is int for x in numbers):
        raise BadInput(
            f"{path}: layers_to_transform is {layers!r}; wanted a number or a list"
        )
    if layers is not None and isinstance(wanted, str):
        raise BadInput(
            f"{path}: layers_to_transform needs target_modules as a list, and it is "
            f"{wanted!r}; PEFT refuses both together too"
        )


def _is_chosen(fields: Mapping[str, Any], module: str, path: str) -> bool:
    """Whether PEFT would adapt a module."""
    left_out, wanted = fields.get("exclude_modules"), fields["target_modules"]
    if left_out and _matches(left_out, module, path):
        return False
    if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
        return module not in OUTSIDE
    if not _matches(wanted, module, path):
        return False
    layers = fields.get("layers_to_transform")
    # A name in full is meant, whatever its layer.
    if layers is None or layers == [] or module in wanted:
        return True
    # Any name before the layer's number, if none is wanted.
    patterns = fields.get("layers_pattern") or r"[^.]*"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := _regex(rf"(.*?\.)?{pattern}\.(?P<layer>\d+)\..*", module, path):
            kept = layers if isinstance(layers, list) else [layers]
            return match["layer"] is not None and int(match["layer"]) in kept
    return False


def _matches(wanted: Any, module: str, path: str) -> bool:
    """As PEFT does: a list of names or endings, or a regular expression."""
    if isinstance(wanted, list):
        return any(module == name or module.endswith(f".{name}") for name in wanted)
    return _regex(wanted, module, path) is not None


def _regex(pattern: str, module: str, path: str) -> re.Match[str] | None:
    try:
        return re.fullmatch(pattern, module)
    except re.error as error:
        raise BadInput(
            f"{path}: {pattern!r} is not a regular expression: {error}"
        ) from None


def _pattern(fields: Mapping[str, Any], name: str, path: str) -> dict[str, Any]:
    value = fields.get(name) or {}
    if not isinstance(value, dict):
        raise BadInput(f"{path}: {name} is {value!r}; wanted an object")
    return value


def _of(pattern: Mapping[str, Any], module: str, usual: Any, path: str) -> Any:
    """Returns the value of the first key that the module's name ends in."""
    for key, value in pattern.items():
        if _regex(rf"(.*\.)?({key})", module, path):
            return value
    return usual
