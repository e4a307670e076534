"""A .gguf file's metadata as Hugging Face's config.json. What is unknown is refused."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from tpmm_jax.errors import BadInput
from tpmm_jax.models.config import LIMITS
from tpmm_jax.models.families import FAMILIES, Family
from tpmm_jax.weights._hf_windows import FULL, SLIDING
from tpmm_jax.weights.hf_config import ACTIVATIONS, one_or_all

ROPE_FREQS = "rope_freqs.weight"

# What ends an answer, and the names of our families' tokens for it.
ENDS: dict[str, tuple[str, ...]] = {
    "eos": (),
    "eot": ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|endoftext|>"),
    "eom": ("<|eom_id|>",),
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the .gguf files of one general.architecture hold.

    Attributes:
      model_type: Hugging Face's name of the family; one with windows is in
        windowed_type.
      windowed_type: the family of a file that names a sliding window.
      reads: those of EXTRA that this architecture has.
      permuted: query and key rows alternate between the two halves of a head.
      rope_freqs: a tensor may divide the rotary frequencies (Llama 3).
      widest: number of layers of the one size whose query_pre_attn_scalar is
        width / heads. No field tells it; llama.cpp goes by the layers as well.
    """

    model_type: str
    windowed_type: str | None = None
    reads: frozenset[str] = frozenset()
    permuted: bool = False
    rope_freqs: bool = False
    widest: int | None = None


WINDOW = "attention.sliding_window"

# Fields that only some architectures read, and config.json's names of them.
EXTRA = {
    WINDOW: "sliding_window",
    f"{WINDOW}_pattern": "sliding_window_pattern",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base_swa": "rope_local_base_freq",
}

# llama.cpp has no architecture of Mistral's: its files say "llama".
ARCHITECTURES: dict[str, Architecture] = {
    "gemma": Architecture(model_type="gemma"),
    "gemma2": Architecture(
        model_type="gemma2",
        reads=frozenset({WINDOW, "attn_logit_softcapping", "final_logit_softcapping"}),
        widest=46,
    ),
    "gemma3": Architecture(
        model_type="gemma3_text",
        reads=frozenset(
            {
                WINDOW,
                f"{WINDOW}_pattern",
                "final_logit_softcapping",
                "rope.freq_base_swa",
            }
        ),
        widest=62,
    ),
    "llama": Architecture(
        model_type="llama",
        windowed_type="mistral",
        reads=frozenset({WINDOW}),
        permuted=True,
        rope_freqs=True,
    ),
    "qwen2": Architecture(model_type="qwen2"),
    "qwen3": Architecture(model_type="qwen3"),
}

# Fields that shape the model (prefix "llama." etc.); any other is refused.
READ = {
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.layer_norm_rms_epsilon", "attention.value_length", "block_count",
    "context_length", "embedding_length", "feed_forward_length",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.type", "vocab_size",
}  # fmt: skip
# Fields of which only this value is supported, unless the architecture reads them.
ONLY: dict[str, Any] = {
    "attention.causal": True,
    WINDOW: 0,
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
        """Raises BadInput for a file that is not a whole model of a known kind."""
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
            if field in self.architecture.reads:
                continue
            if field in ONLY and value != ONLY[field]:
                problems.append(f"{key} = {value!r} (only {ONLY[field]!r})")
            elif field not in READ | IGNORED | set(ONLY):
                problems.append(f"{key} = {str(value)[:80]}")
        if problems:
            raise BadInput(
                f"{self.origin} has fields that this library does not compute:\n  "
                + "\n  ".join(problems)
            )

    @property
    def model_type(self) -> str:
        """Hugging Face's name of the family."""
        windowed = self.architecture.windowed_type
        if windowed is not None and self.field(WINDOW):
            return windowed
        return self.architecture.model_type

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    def field(self, name: str, default: Any = None) -> Any:
        """Returns a field that shapes the model; a float32 as its shortest decimal."""
        value = self.values.get(f"{self.name}.{name}", default)
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def count(self, name: str, default: int | None = None) -> int:
        """Returns a positive whole number that shapes the model."""
        value = self.field(name, default)
        most = LIMITS["num_layers"] if name == "block_count" else 2**31 - 1
        if not isinstance(value, int) or not 1 <= value <= most:
            raise BadInput(
                f"{self.origin}: {self.name}.{name} is {value!r:.200}; wanted one "
                f"whole number for all layers, from 1 to {most:,}"
            )
        return value


def make_config_json(
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
    heads = metadata.count("attention.head_count")
    width = metadata.count("embedding_length")
    head_dim = _head_dim(metadata, width, heads)
    theta = metadata.field("rope.freq_base", 10000.0)
    epsilon = metadata.field("attention.layer_norm_rms_epsilon")
    if epsilon is None:
        raise BadInput(
            f"{metadata.origin} lacks {metadata.name}.attention.layer_norm_rms_epsilon"
        )
    family = metadata.family
    config: dict[str, Any] = {
        "model_type": metadata.model_type,
        "architectures": [family.architecture],
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
        "hidden_act": ACTIVATIONS[family.activation],
    }
    config |= _family_fields(metadata, tensors, config)
    return config | _special_ids(metadata.values)


def _family_fields(
    metadata: Metadata, tensors: Collection[str], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the fields that this family reads and some others have not."""
    biases = [name for name in tensors if name.endswith(".bias")]
    scalar = config["head_dim"]
    if config["num_hidden_layers"] == metadata.architecture.widest:
        scalar = config["hidden_size"] // config["num_attention_heads"]
    found = {
        "attention_bias": any(".self_attn." in name for name in biases),
        "mlp_bias": any(".mlp." in name for name in biases),
        "hidden_activation": config["hidden_act"],
        "query_pre_attn_scalar": scalar,
        **_extra_fields(metadata),
    }
    return {name: x for name, x in found.items() if name in metadata.family.fields}


def _special_ids(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
        "pad_token_id": values.get("tokenizer.ggml.padding_token_id"),
        "eos_token_id": one_or_all(_ends(values)),
    }


def _ends(values: Mapping[str, Any]) -> list[int]:
    """Returns the ids that end an answer: EOS, the ends of a turn and of a message.

    Converters write the first, at times the others; where they do not, llama.cpp looks
    for a token of a known name, and so do its users' answers end.
    """
    tokens = values.get("tokenizer.ggml.tokens", [])
    found: list[int] = []
    for field, known in ENDS.items():
        value = values.get(f"tokenizer.ggml.{field}_token_id")
        if value is None:
            value = next((tokens.index(name) for name in known if name in tokens), None)
        if value is not None and value not in found:
            found.append(value)
    return found


def _extra_fields(metadata: Metadata) -> dict[str, Any]:
    """Returns the fields of EXTRA that the file has, as config.json spells them."""
    found = {
        theirs: value
        for name, theirs in EXTRA.items()
        if name in metadata.architecture.reads
        and (value := metadata.field(name)) is not None
    }
    if metadata.family.local_rope is not None:
        found.setdefault("sliding_window", 0)
    if found.get("sliding_window") == 0:
        found["sliding_window"] = None
        found["layer_types"] = [FULL] * metadata.count("block_count")
    if isinstance(found.get("sliding_window_pattern"), list):
        pattern = found.pop("sliding_window_pattern")
        found["layer_types"] = [SLIDING if x else FULL for x in pattern]
    return found


def _head_dim(metadata: Metadata, width: int, heads: int) -> int:
    rotary = metadata.field("rope.dimension_count")
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
    factor = metadata.field("rope.scaling.factor")
    # llama.cpp takes a factor without a type for a linear one.
    kind = metadata.field("rope.scaling.type", "linear" if factor else "none")
    original = metadata.field("rope.scaling.original_context_length")
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
