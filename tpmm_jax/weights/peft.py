"""PEFT directories of LoRA adapters, in and out: adapter_config.json, safetensors.

Their A is [r, in] and their B [out, r], one of each a layer; see models.lora for ours.
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput
from tpmm_jax.models import LoraConfig, ModelConfig
from tpmm_jax.models.lora import (
    ALL_LINEAR,
    TARGETS,
    abstract_adapters,
    get,
    placed,
    targets,
)
from tpmm_jax.weights.hf_rope import is_positive
from tpmm_jax.weights.huggingface import numpy_tensor
from tpmm_jax.weights.names import names

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

# Fields that are read below, or that change nothing in what the adapter computes.
READ = (
    "peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "base_model_name_or_path", "revision",
    "task_type", "init_lora_weights", "lora_dropout",
)  # fmt: skip
NEUTRAL = (
    "auto_mapping", "peft_version", "inference_mode", "megatron_core",
    "qalora_group_size", "runtime_config",
)  # fmt: skip
# Ways to begin that leave the base's weights alone.
PLAIN_INIT = (True, False, "gaussian", "orthogonal", "eva")


def is_adapter(directory: pathlib.Path) -> bool:
    """Whether this is a PEFT directory."""
    return (directory / CONFIG).is_file()


def parse_adapter_config(fields: Mapping[str, Any], path: str) -> LoraConfig:
    """Returns rank, alpha and rsLoRA of an adapter_config.json; targets come later.

    Raises:
      BadInput: a field that is not understood, by name.
    """
    if fields.get("peft_type") != "LORA":
        raise BadInput(
            f"{path}: peft_type is {fields.get('peft_type')!r}; only LORA is read"
        )
    if fields.get("task_type") not in (None, "CAUSAL_LM"):
        raise BadInput(f"{path}: task_type is {fields['task_type']!r}; only CAUSAL_LM")
    for name, value in fields.items():
        if name == "bias" and value == "none":
            continue
        if name not in (*READ, *NEUTRAL) and value not in (None, False, "", {}, []):
            raise BadInput(
                f"{path}: {name} is {value!r}, which is not understood; merge the "
                "adapter with PEFT's merge_and_unload and load the merged model"
            )
    init = fields.get("init_lora_weights", True)
    if init not in PLAIN_INIT:
        raise BadInput(
            f"{path}: init_lora_weights is {init!r}, which changes the base's weights "
            "too; merge the adapter with PEFT's merge_and_unload and load that"
        )
    rank: Any = fields.get("r")
    alpha: Any = fields.get("lora_alpha")
    rslora = fields.get("use_rslora", False)
    if type(rank) is not int or rank < 1:
        raise BadInput(f"{path}: r is {rank!r}; wanted a whole number, at least 1")
    if not is_positive(alpha):
        raise BadInput(f"{path}: lora_alpha is {alpha!r}; wanted a positive number")
    if not isinstance(rslora, bool):
        raise BadInput(f"{path}: use_rslora is {rslora!r}; wanted true or false")
    return LoraConfig(rank=rank, alpha=float(alpha), rslora=rslora)


def modules(config: ModelConfig) -> dict[str, tuple[str, int]]:
    """Returns "model.layers.0.self_attn.q_proj" -> ("q_proj", 0) of every target."""
    table = {name.path: name.theirs for name in names(config)}
    return {
        table[target.path].format(layer).removesuffix(".weight"): (short, layer)
        for short, target in TARGETS.items()
        for layer in range(config.num_layers)
    }


def selected(
    fields: Mapping[str, Any], config: ModelConfig, path: str
) -> dict[str, tuple[str, int]]:
    """Returns those of ``modules`` that target_modules and its companions name.

    Raises:
      BadInput: a name that is none of them.
    """
    known, wanted = modules(config), fields.get("target_modules")
    layers = fields.get("layers_to_transform")
    pattern = fields.get("layers_pattern")
    if pattern not in (None, "", "layers", ["layers"]):
        raise BadInput(f"{path}: layers_pattern is {pattern!r}; wanted 'layers'")
    kept = {layers} if isinstance(layers, int) else set(layers or range(10**6))
    if isinstance(wanted, list):
        for name in wanted:
            if not any(_names(name, module) for module in known):
                raise BadInput(
                    f"{path}: target_modules names {name!r}; only the linear layers of "
                    f"a {config.family} model are read: {', '.join(TARGETS)}"
                )
    elif not isinstance(wanted, str):
        raise BadInput(f"{path}: target_modules is {wanted!r}; wanted a list or a text")
    left_out = fields.get("exclude_modules")
    return {
        module: place
        for module, place in known.items()
        if place[1] in kept
        and _matches(wanted, module, path)
        and not (left_out and _matches(left_out, module, path))
    }


def _names(name: Any, module: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _matches(wanted: Any, module: str, path: str) -> bool:
    """As PEFT does: a list of names or endings, a regular expression, all-linear."""
    if isinstance(wanted, list):
        return any(_names(name, module) for name in wanted)
    if wanted == "all-linear":
        return True
    try:
        return re.fullmatch(wanted, module) is not None
    except re.error as error:
        raise BadInput(
            f"{path}: {wanted!r} is no regular expression: {error}"
        ) from None


@dataclass(frozen=True)
class AdapterDirectory:
    """A PEFT directory.

    Attributes:
      fields: of its adapter_config.json.
    """

    directory: pathlib.Path
    fields: Mapping[str, Any]

    @property
    def path(self) -> str:
        """What messages name."""
        return str(self.directory / CONFIG)

    def base(self, given: str | None) -> tuple[str, str | None]:
        """Returns the name and the revision of the model under the adapter.

        Args:
          given: a name that goes before the directory's own.
        """
        if given is not None:
            return given, None
        name = self.fields.get("base_model_name_or_path")
        if not isinstance(name, str) or not name:
            raise BadInput(
                f"{self.path}: base_model_name_or_path is {name!r}; write the base's "
                "directory or hub id there, or give it as base=..."
            )
        beside = self.directory / name
        if not pathlib.Path(name).exists() and beside.exists():
            return str(beside), None
        return name, self.fields.get("revision")

    def lora(self, config: ModelConfig) -> LoraConfig:
        """Returns rank, alpha, rsLoRA and the targets that any layer has.

        Args:
          config: the base's.
        """
        lora = parse_adapter_config(self.fields, self.path)
        found = {
            short for short, _ in selected(self.fields, config, self.path).values()
        }
        if not found:
            raise BadInput(
                f"{self.path}: target_modules {self.fields.get('target_modules')!r} "
                f"names no linear layer of a {config.family} model"
            )
        short = [name for name in TARGETS if name in found]
        text = ALL_LINEAR if len(short) == len(TARGETS) else ",".join(short)
        return replace(lora, targets=text)

    def read(self, config: ModelConfig, base: Params) -> Params:
        """Returns the adapters; a layer that PEFT left out has a product of zero.

        Args:
          base: abstract parameters of the base, whose shardings the adapters take.

        Raises:
          BadInput: tensors that are missing, left over, of another shape or not finite.
        """
        path = self.directory / WEIGHTS
        if not path.is_file():
            raise BadInput(
                f"{self.directory} holds no {WEIGHTS}; other formats are not read: "
                "save the adapter with PEFT's save_pretrained(safe_serialization=True)"
            )
        wanted = {
            f"{PREFIX}{module}.lora_{part}.weight": (part, *place)
            for module, place in selected(self.fields, config, self.path).items()
            for part in "AB"
        }
        abstract = abstract_adapters(base, self.lora(config))
        host = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), abstract)
        try:
            with safe_open(path, framework="numpy") as file:
                _check_tensors(path, set(file.keys()), set(wanted))
                for name, (part, short, layer) in wanted.items():
                    pair = get(host, TARGETS[short].path)
                    tensor = numpy_tensor(file, name)
                    _fill(pair[part.lower()][layer], tensor, part, name)
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{path} cannot be read: {error}") from None
        return jax.tree.map(_put, host, abstract)


def _put(x: np.ndarray, target: Any) -> jax.Array:
    if target.sharding is None:
        return jnp.asarray(x)
    return jax.device_put(x, target.sharding)


def _check_tensors(path: pathlib.Path, found: set[str], wanted: set[str]) -> None:
    for what, some in (("lacks", wanted - found), ("has unknown", found - wanted)):
        if some:
            shown = ", ".join(sorted(some)[:4]) + (", ..." if len(some) > 4 else "")
            raise BadInput(
                f"{path} {what} {len(some)} tensors for its {CONFIG}: {shown}"
            )


def _fill(into: np.ndarray, tensor: np.ndarray, part: str, name: str) -> None:
    """Writes [r, in] into [*in, r], or [out, r] into [r, *out]."""
    rank = into.shape[-1] if part == "A" else into.shape[0]
    shape = (rank, into.size // rank) if part == "A" else (into.size // rank, rank)
    if tensor.shape != shape or not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise BadInput(
            f"{name} is {tensor.dtype} of shape {tensor.shape}; wanted {shape}, which "
            "rank and the base's shapes ask for"
        )
    into[...] = tensor.astype(np.float32).T.reshape(into.shape)
    if not np.isfinite(into).all():
        raise BadInput(
            f"{name} has numbers that are infinite or no numbers; the training that "
            "wrote it went wrong: take an earlier checkpoint"
        )


def adapter_config(lora: LoraConfig, base: str, revision: str | None) -> dict[str, Any]:
    """Returns the content of an adapter_config.json.

    Args:
      base: hub id or directory of the base model.
      revision: of a hub id.
    """
    alpha = int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": alpha,
        "use_rslora": lora.rslora,
        "lora_dropout": lora.dropout,
        "target_modules": list(targets(lora)),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
    }


def write_adapters(
    adapters: Params,
    config: ModelConfig,
    content: Mapping[str, Any],
    directory: str | os.PathLike,
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors.

    Args:
      content: of ``adapter_config``.
    """
    directory = pathlib.Path(directory)
    table = {name.path: name.theirs for name in names(config)}
    tensors: dict[str, np.ndarray] = {}
    for target, pair in placed(adapters):
        a, b = np.asarray(pair["a"], np.float32), np.asarray(pair["b"], np.float32)
        module = PREFIX + table[target.path].removesuffix(".weight")
        for layer in range(config.num_layers):
            rank = b.shape[1]
            a_layer, b_layer = a[layer].reshape(-1, rank), b[layer].reshape(rank, -1)
            name = module.format(layer)
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a_layer.T)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b_layer.T)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(dict(content), indent=2) + "\n"
    (directory / CONFIG).write_text(text, encoding="utf-8")
