"""PEFT directories of LoRA adapters, in and out: adapter_config.json, safetensors.

Their A is [r, in] and their B [out, r], one per layer; see models.lora for ours.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
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
    TARGETS,
    WHOLE,
    abstract_adapters,
    get,
    placed,
    scaling,
    targets,
)
from tpmm_jax.weights._peft_config import (
    MERGE,
    joint_config,
    read_targets,
    saves_head,
)
from tpmm_jax.weights.agreement import agree_on_files
from tpmm_jax.weights.description import read_json
from tpmm_jax.weights.huggingface import (
    INDEX,
    MODEL,
    check_finite,
    check_same,
    numpy_tensor,
)
from tpmm_jax.weights.names import Name, names

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."


def is_adapter(directory: pathlib.Path) -> bool:
    """Whether this is a PEFT directory.

    Raises:
      BadInput: the weights of an adapter and of a whole model lie side by side.
    """
    if not (directory / CONFIG).is_file():
        return False
    whole = [name for name in (INDEX, MODEL) if (directory / name).exists()]
    adapter = [name for name in (WEIGHTS, PICKLED) if (directory / name).exists()]
    if whole and adapter:
        raise BadInput(
            f"{directory} holds the weights of an adapter, {adapter[0]}, beside those "
            f"of a whole model, {whole[0]}: move {CONFIG} and {adapter[0]} to a "
            "directory of their own, then name the one that is meant"
        )
    # A merge saved where its adapter was leaves adapter_config.json behind.
    return not whole


class AdapterDirectory:
    """A PEFT directory.

    Attributes:
      path: of its adapter_config.json, for messages.
      fields: what that holds.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        """Raises BadInput for an adapter_config.json that is not a JSON object."""
        self.directory = directory
        self.path = str(directory / CONFIG)
        self.fields = read_json(directory / CONFIG)

    @property
    def rewards(self) -> bool:
        """Whether this adapts a reward model; then it holds the head as well."""
        return saves_head(self.fields)

    def base(self) -> tuple[str, str | None]:
        """Returns the name and the revision of the model under the adapter."""
        name = self.fields.get("base_model_name_or_path")
        if not isinstance(name, str) or not name:
            raise BadInput(
                f"{self.path}: base_model_name_or_path is {name!r}; write the base's "
                "directory or hub id there, or give it: --base BASE of a command, "
                "model.base of a config, base=... in Python"
            )
        beside = self.directory / name
        if not pathlib.Path(name).exists() and beside.exists():
            return str(beside), None
        return name, self.fields.get("revision")

    def lora(self, config: ModelConfig) -> LoraConfig:
        """Returns the config that holds every matrix's adapter.

        Args:
          config: the base's.
        """
        return joint_config(read_targets(self.fields, config, self.path).values())

    def read(self, config: ModelConfig, base: Params) -> Params:
        """Returns the adapters, all of ``lora``'s rank and scale.

        Those of a smaller rank are filled up with zeros, and B takes what differs in
        scale; a layer that PEFT left out has zeros alone: products are PEFT's.

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
        agree_on_files([path], str(self.directory))
        found = read_targets(self.fields, config, self.path)
        wanted = {
            f"{PREFIX}{module}.lora_{part}.weight": (part, adapter)
            for module, adapter in found.items()
            for part in "AB"
        }
        joint = joint_config(found.values())
        abstract = abstract_adapters(base, joint)
        whole = whole_names(config)
        try:
            with safe_open(path, framework="numpy") as file:
                _check_whole(file, whole, abstract, path)
                check_same(
                    set(file.keys()),
                    {*wanted, *(PREFIX + name.theirs for name in whole)},
                    str(path),
                    f"its {CONFIG}",
                    most=4,
                    advice=f". If PEFT loads it, {MERGE}",
                )
                for name, (part, adapter) in wanted.items():
                    pair = get(abstract, TARGETS[adapter.target].path)
                    _check_shape(file, name, part, pair, adapter.config.rank, path)
                host = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), abstract)
                for name, (part, adapter) in wanted.items():
                    pair = get(host, TARGETS[adapter.target].path)
                    into, rank = pair[part.lower()][adapter.layer], adapter.config.rank
                    into = into[..., :rank] if part == "A" else into[:rank]
                    _fill(into, numpy_tensor(file, name), part, f"{path}: {name}")
                    if part == "B":
                        into *= np.float32(scaling(adapter.config) / scaling(joint))
                for one in whole:
                    into, theirs = get(host, one.path), PREFIX + one.theirs
                    _fill(into, numpy_tensor(file, theirs), "A", f"{path}: {theirs}")
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{path} cannot be read: {error}") from None
        return jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), host, abstract)


def whole_names(config: ModelConfig) -> list[Name]:
    """Returns what a PEFT directory holds as it is: a reward model's head."""
    return [name for name in names(config) if name.path[0] in WHOLE]


def _check_whole(
    file: Any, whole: Sequence[Name], abstract: Params, path: pathlib.Path
) -> None:
    """Raises BadInput unless the reward head is there, with one label."""
    for name in whole:
        theirs = PREFIX + name.theirs
        if theirs not in set(file.keys()):
            raise BadInput(
                f"{path} lacks the reward head, {theirs}, and none is made up: save "
                'the adapter with modules_to_save ["score"] (task_type SEQ_CLS does so)'
            )
        wanted = name.their_shape(get(abstract, name.path).shape)
        found = tuple(file.get_slice(theirs).get_shape())
        if found != wanted:
            raise BadInput(
                f"{path}: {theirs} has shape {found}; wanted {wanted}: a reward model "
                "has one label (num_labels 1) and the base's width"
            )


def _check_shape(
    file: Any, name: str, part: str, pair: Params, rank: int, path: pathlib.Path
) -> None:
    """Raises BadInput unless a tensor has the shape that rank and base ask for.

    Args:
      pair: the abstract adapter of its matrix, with a leading layer axis.
    """
    found = tuple(file.get_slice(name).get_shape())
    inside = pair["a"].shape[1:-1] if part == "A" else pair["b"].shape[2:]
    size = math.prod(inside)
    wanted = (rank, size) if part == "A" else (size, rank)
    if found != wanted:
        raise BadInput(
            f"{path}: {name} has shape {found}; wanted {wanted}, which rank and the "
            "base's shapes ask for"
        )


def _fill(into: np.ndarray, tensor: np.ndarray, part: str, name: str) -> None:
    """Writes [r, in] into [*in, r], or [out, r] into [r, *out]."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise BadInput(f"{name} is {tensor.dtype}; wanted floating-point weights")
    into[...] = tensor.astype(np.float32).T.reshape(into.shape)
    check_finite(into, name)


def adapter_config(
    lora: LoraConfig, base: str, revision: str | None, *, rewards: bool = False
) -> dict[str, Any]:
    """Returns the content of an adapter_config.json.

    Args:
      rewards: the adapters are of a reward model, and hold its head.
      base: hub id or directory of the base model.
      revision: of a hub id.
    """
    alpha = int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if rewards else "CAUSAL_LM",
        "modules_to_save": ["score"] if rewards else None,
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
    table = {name.path: name for name in names(config)}
    tensors: dict[str, np.ndarray] = {}
    for target, pair in placed(adapters):
        a, b = np.asarray(pair["a"], np.float32), np.asarray(pair["b"], np.float32)
        for index, theirs in table[target.path].tensors(config):
            rank = b.shape[1]
            a_layer, b_layer = a[index].reshape(-1, rank), b[index].reshape(rank, -1)
            name = PREFIX + theirs.removesuffix(".weight")
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a_layer.T)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b_layer.T)
    for one in whole_names(config):
        head = np.asarray(get(adapters, one.path), np.float32)
        tensors[PREFIX + one.theirs] = np.ascontiguousarray(one.to_theirs(head))
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(dict(content), indent=2) + "\n"
    (directory / CONFIG).write_text(text, encoding="utf-8")
