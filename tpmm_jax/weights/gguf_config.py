"""A .gguf file's metadata as Hugging Face's config.json. What is unknown is refused."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from tpmm_jax.errors import BadInput

ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the .gguf files of one general.architecture hold.

    Attributes:
      model_class: Hugging Face's class.
      activation: Hugging Face's name of the MLP's activation.
      activation_fields: the config fields that hold it.
      permuted: query and key rows alternate between the two halves of a head.
      offset_norms: norm weights are stored as 1 + w.
      qk_norm: queries and keys are normalised per head.
      rope_freqs: a tensor may divide the rotary frequencies (Llama 3).
    """

    model_class: str
    activation: str = "silu"
    activation_fields: tuple[str, ...] = ("hidden_act",)
    permuted: bool = False
    offset_norms: bool = False
    qk_norm: bool = False
    rope_freqs: bool = False


ARCHITECTURES: dict[str, Architecture] = {
    "gemma": Architecture(
        model_class="GemmaForCausalLM",
        activation="gelu_pytorch_tanh",
        activation_fields=("hidden_act", "hidden_activation"),
        offset_norms=True,
    ),
    "llama": Architecture(
        model_class="LlamaForCausalLM", permuted=True, rope_freqs=True
    ),
    "qwen3": Architecture(model_class="Qwen3ForCausalLM", qk_norm=True),
}

# Fields that shape the model (prefix "llama." etc.); any other is refused.
READ = {
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.layer_norm_rms_epsilon", "attention.value_length", "block_count",
    "context_length", "embedding_length", "feed_forward_length",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.type", "vocab_size",
}  # fmt: skip
# Fields of which only this value is supported.
ONLY: dict[str, Any] = {
    "attention.causal": True,
    "attention.sliding_window": 0,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scale_linear": 1.0,
    "tensor_data_layout": "Meta AI original pth",
}
# Says how the file was made, not what the model computes.
IGNORED = {"rope.scaling.finetuned"}

# The only Llama 3 scaling published so far, but for its factor.
LLAMA3_ROPE = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


class Metadata:
    """A file's fields; those that shape the model are checked to be understood.

    Attributes:
      values: every field by its full name, arrays as lists.
      origin: the file's name, for messages.
      name: general.architecture.
      architecture: what files of that name hold.
    """

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        """Raises BadInput for a file that is no whole model of a known kind."""
        self.values = values
        self.origin = origin
        kind = values.get("general.type", "model")
        parts = values.get("split.count", 1)
        if kind != "model":
            raise BadInput(f"{origin}: general.type is {kind!r}; wanted 'model'")
        if parts > 1:
            raise BadInput(
                f"{origin} is one of {parts} parts; join them with llama.cpp's "
                "llama-gguf-split --merge"
            )
        name = values.get("general.architecture")
        if name not in ARCHITECTURES:
            raise BadInput(
                f"{origin}: general.architecture is {name!r}; supported are "
                f"{', '.join(sorted(ARCHITECTURES))}"
            )
        self.name = str(name)
        self.architecture = ARCHITECTURES[self.name]
        self._check()

    def _check(self) -> None:
        problems = []
        for key, value in self.values.items():
            if not key.startswith(f"{self.name}."):
                continue
            field = key.removeprefix(f"{self.name}.")
            if field in ONLY and value != ONLY[field]:
                problems.append(f"{key} = {value!r} (only {ONLY[field]!r})")
            elif field not in READ | IGNORED | set(ONLY):
                problems.append(f"{key} = {str(value)[:80]}")
        if problems:
            raise BadInput(
                f"{self.origin} has fields that this library does not compute:\n  "
                + "\n  ".join(problems)
            )

    def shape(self, name: str, default: Any = None) -> Any:
        """A field that shapes the model; a float32 as its shortest decimal."""
        value = self.values.get(f"{self.name}.{name}", default)
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def count(self, name: str, default: int | None = None) -> int:
        """A positive whole number that shapes the model."""
        value = self.shape(name, default)
        if not isinstance(value, int) or value < 1:
            raise BadInput(
                f"{self.origin}: {self.name}.{name} is {value!r}; wanted one positive "
                "whole number for all layers"
            )
        return value


def make_config(
    metadata: Metadata,
    *,
    vocab_size: int,
    tensors: Collection[str],
    divisors: Float[np.ndarray, " half"] | None,
) -> dict[str, Any]:
    """Returns what the same model's config.json holds.

    Args:
      metadata: the file's fields.
      vocab_size: rows of the embedding.
      tensors: the tensors' Hugging Face names.
      divisors: rope_freqs.weight, where the file has it.

    Raises:
      BadInput: a field that is missing, inconsistent or not supported.
    """
    architecture = metadata.architecture
    heads = metadata.count("attention.head_count")
    width = metadata.count("embedding_length")
    head_dim = _head_dim(metadata, width, heads)
    theta = metadata.shape("rope.freq_base", 10000.0)
    epsilon = metadata.shape("attention.layer_norm_rms_epsilon")
    if epsilon is None:
        raise BadInput(
            f"{metadata.origin} lacks {metadata.name}.attention.layer_norm_rms_epsilon"
        )
    biases = [name for name in tensors if name.endswith(".bias")]
    config: dict[str, Any] = {
        "model_type": metadata.name,
        "architectures": [architecture.model_class],
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": metadata.count("feed_forward_length"),
        "num_hidden_layers": metadata.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": metadata.count("context_length"),
        "rms_norm_eps": epsilon,
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(metadata, theta, head_dim, divisors),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "attention_bias": any(".self_attn." in name for name in biases),
    }
    if metadata.name == "llama":
        config["mlp_bias"] = any(".mlp." in name for name in biases)
    for name in architecture.activation_fields:
        config[name] = architecture.activation
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        value = metadata.values.get(f"tokenizer.ggml.{theirs}_token_id")
        config[f"{ours}_token_id"] = value
    return config


def _head_dim(metadata: Metadata, width: int, heads: int) -> int:
    rotary = metadata.shape("rope.dimension_count")
    head_dim = metadata.count("attention.key_length", rotary or width // heads)
    value_dim = metadata.count("attention.value_length", head_dim)
    if rotary not in (None, head_dim) or value_dim != head_dim:
        raise BadInput(
            f"{metadata.origin}: a head has {head_dim} query and key entries, of which "
            f"{rotary} rotate, and {value_dim} value entries; wanted one number"
        )
    return head_dim


def _rope_scaling(
    metadata: Metadata,
    theta: float,
    head_dim: int,
    divisors: Float[np.ndarray, " half"] | None,
) -> dict[str, Any] | None:
    """Returns config.json's rope_scaling, from metadata or from rope_freqs."""
    kind = metadata.shape("rope.scaling.type", "none")
    factor = metadata.shape("rope.scaling.factor")
    original = metadata.shape("rope.scaling.original_context_length")
    if divisors is not None:
        if kind != "none":
            raise BadInput(
                f"{metadata.origin} scales its rotary frequencies twice: {ROPE_FREQS} "
                f"and {metadata.name}.rope.scaling.type = {kind!r}"
            )
        return llama3_scaling(divisors, theta, head_dim, metadata.origin)
    if kind == "none":
        return None
    if kind not in ("linear", "yarn") or factor is None:
        raise BadInput(
            f"{metadata.origin}: {metadata.name}.rope.scaling.type is {kind!r} with "
            f"factor {factor!r}; supported: 'none', 'linear', 'yarn', with a factor"
        )
    scaling = {"rope_type": kind, "factor": factor}
    if original is not None:
        scaling["original_max_position_embeddings"] = original
    return scaling


def llama3_scaling(
    divisors: Float[np.ndarray, " half"], theta: float, head_dim: int, origin: str
) -> dict[str, Any] | None:
    """Returns the rope_scaling that divides the rotary frequencies like this.

    Long waves are divided by the factor, short ones kept, those between blended.

    Args:
      divisors: one number >= 1 for each of the E/2 rotary frequencies.
      theta: the rotary base.
      head_dim: E.
      origin: the file's name, for messages.

    Returns:
      None where nothing is divided.

    Raises:
      BadInput: the numbers are not those of a published Llama 3.

    Source: The Llama 3 Herd of Models (arXiv 2407.21783) and its rope_scaling.
    """
    factor = float(str(divisors.max(initial=1.0)))
    scaling = {"rope_type": "llama3", "factor": factor, **LLAMA3_ROPE}
    low, high, length = LLAMA3_ROPE.values()
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    keep = np.clip((length / waves - low) / (high - low), 0.0, 1.0)
    wanted = 1 / ((1 - keep) / factor + keep)
    if divisors.shape != wanted.shape or not np.allclose(divisors, wanted, rtol=1e-4):
        raise BadInput(
            f"{origin}: {ROPE_FREQS} is not a scaling of Llama 3's kind (factor "
            f"{factor}, {LLAMA3_ROPE}); this rotary scaling is not supported"
        )
    return None if factor == 1.0 else scaling
