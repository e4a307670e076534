"""A .gguf file in Hugging Face's terms: config, tensors, tokenizer.

The format stores the same models under llama.cpp's names, often quantised, with two
changes of values that are undone here: llama's query and key rows are reordered for
another rotary layout, and Gemma's norm weights hold 1 + w.
"""

import difflib
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from transformers import PreTrainedTokenizerFast

from tpmm_jax.data.pointers import refuse_pointer
from tpmm_jax.errors import BadInput, nearest_path
from tpmm_jax.weights._gguf_tokenizer import build_tokenizer
from tpmm_jax.weights.gguf_config import ROPE_FREQS, Metadata, make_config_json

MODEL_NAMES = {
    "output": "lm_head",
    "output_norm": "model.norm",
    "token_embd": "model.embed_tokens",
}
LAYER_NAMES = {
    "attn_k": "self_attn.k_proj",
    "attn_norm": "input_layernorm",
    "attn_output": "self_attn.o_proj",
    "attn_q": "self_attn.q_proj",
    "attn_v": "self_attn.v_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.up_proj",
}
QK_NORM_NAMES = {
    "attn_k_norm": "self_attn.k_norm",
    "attn_q_norm": "self_attn.q_norm",
}
POST_NORM_NAMES = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Whose rows llama's converter reorders, and how many heads they have.
PERMUTED = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}


class GGUFFile:
    """A memory-mapped .gguf checkpoint in Hugging Face terms.

    Attributes:
      path: the file.
      origin: its name, for messages.
      config: what the same model's config.json holds.
    """

    config: dict[str, Any]

    def __init__(self, path: str | os.PathLike) -> None:
        """Maps the file and checks that all of it is understood.

        Raises:
          BadInput: no such file, not a .gguf file or a damaged one, an architecture,
            field or tensor that is not supported, or no gguf package.
        """
        self.path = pathlib.Path(path)
        self.origin = str(path)
        reader, self._dequantize = _open(self.path)
        values = {key: field.contents() for key, field in reader.fields.items()}
        self._metadata = Metadata(values, str(self.path))
        stored = {tensor.name: tensor for tensor in reader.tensors}
        scaled = self._metadata.architecture.rope_freqs and ROPE_FREQS in stored
        divisors = self._values(stored.pop(ROPE_FREQS)) if scaled else None
        self._tensors = self._rename(stored)
        embedding = self._tensors.get("model.embed_tokens.weight")
        if embedding is None:
            raise BadInput(f"{self.path} lacks token_embd.weight")
        self.config = make_config_json(
            self._metadata,
            # The file's order of axes is the reverse of NumPy's.
            vocab_size=int(embedding.shape[-1]),
            tensors=self._tensors,
            divisors=divisors,
        )

    def files(self) -> list[pathlib.Path]:
        return [self.path]

    def names(self) -> list[str]:
        """The tensors' Hugging Face names."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape in Hugging Face's layout; no values are read."""
        # The file's order of axes is the reverse of NumPy's.
        return tuple(int(n) for n in self._tensors[name].shape[::-1])

    def tensor(self, name: str) -> Float[np.ndarray, "..."]:
        """Returns one tensor, dequantised, in Hugging Face's layout ([out, in]).

        Raises:
          BadInput: an unknown name, or a quantisation that cannot be read.
        """
        if name not in self._tensors:
            near = difflib.get_close_matches(name, self._tensors, n=3)
            raise BadInput(
                f"{self.path} holds no {name!r}"
                + (f"; near it: {', '.join(near)}" if near else "")
            )
        return self.rows(name, 0, self.shape(name)[0])

    def rows(self, name: str, start: int, stop: int) -> Float[np.ndarray, "..."]:
        """Returns a part of the first axis of one of ``names()``; see ``tensor``."""
        head = self._reordered(name)
        first, last = start // head * head, -(-stop // head) * head
        values = self._values(self._tensors[name], slice(first, last))
        if name.endswith("norm.weight"):
            values = values - np.float32(self._metadata.family.norm_offset)
        if head > 1:
            values = unpermute(values, (last - first) // head)
        return values[start - first : stop - first]

    def _reordered(self, name: str) -> int:
        """Returns how many rows, a head's, are reordered among themselves; 1: none."""
        part = name.split(".")[-2]
        if not self._metadata.architecture.permuted or part not in PERMUTED:
            return 1
        heads, head_dim = self.config[PERMUTED[part]], self.config["head_dim"]
        if (rows := self.shape(name)[0]) != heads * head_dim:
            raise BadInput(
                f"{self.path}: {name} has {rows} rows; {PERMUTED[part]} "
                f"and head_dim ask for {heads} * {head_dim}"
            )
        return head_dim

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Returns the file's tokenizer, with its special tokens and chat template.

        Raises:
          BadInput: a tokenizer that is missing, inconsistent or not supported.
        """
        tokenizer = build_tokenizer(self._metadata.values, str(self.path))
        if len(tokenizer) > self.config["vocab_size"]:
            raise BadInput(
                f"{self.path}: {len(tokenizer)} tokens, but an embedding of "
                f"{self.config['vocab_size']} rows"
            )
        return tokenizer

    def _rename(self, stored: dict[str, Any]) -> dict[str, Any]:
        """Returns the tensors under their Hugging Face names."""
        metadata, family = self._metadata, self._metadata.family
        layers = dict(LAYER_NAMES)
        if family.qk_norm:
            layers |= QK_NORM_NAMES
        if family.post_norms:
            layers |= POST_NORM_NAMES
        num_layers = metadata.count("block_count")
        renamed, unknown = {}, []
        for theirs, tensor in stored.items():
            match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", theirs)
            layer, part, kind = match.groups() if match else (None, "", "")
            name = (MODEL_NAMES if layer is None else layers).get(part)
            if name is None or (layer is not None and int(layer) >= num_layers):
                unknown.append(theirs)
            elif layer is None:
                renamed[f"{name}.{kind}"] = tensor
            else:
                renamed[f"model.layers.{int(layer)}.{name}.{kind}"] = tensor
        if unknown:
            raise BadInput(
                f"{self.path} has {len(unknown)} tensors that a {metadata.name} "
                f"model of {num_layers} layers does not use: {', '.join(unknown[:8])}"
                + (", ..." if len(unknown) > 8 else "")
            )
        return renamed

    def _values(
        self, tensor: Any, rows: slice = slice(None)
    ) -> Float[np.ndarray, "..."]:
        try:
            # A row is a whole number of blocks; one axis alone is one row.
            data = tensor.data[rows] if tensor.data.ndim > 1 else tensor.data
            values = self._dequantize(data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise BadInput(
                f"{self.path}: {tensor.name} is stored as {tensor.tensor_type.name}, "
                f"which cannot be dequantised: {error}"
            ) from error
        if tensor.data.ndim == 1:
            values = values[rows]
        # F32 comes as a view of the read-only file.
        copy = None if values.flags.writeable else True
        return np.array(values, np.float32, copy=copy)


def unpermute(
    rows: Float[np.ndarray, "out ..."], num_heads: int
) -> Float[np.ndarray, "out ..."]:
    """Returns rows in Hugging Face's rotary order from the interleaved one.

    A head's E rows are stored as 0, E/2, 1, E/2 + 1, ...; wanted is 0, 1, 2, ...
    """
    pairs = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _open(path: pathlib.Path) -> tuple[Any, Callable[..., np.ndarray]]:
    """Returns the gguf package's reader of a file and its dequantize function."""
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise BadInput(
            f'{path}: .gguf files need the gguf package: pip install "tpmm_jax[gguf]"'
        ) from error
    if not path.is_file():
        raise BadInput(
            f"{path} is not a file; wanted a .gguf checkpoint{nearest_path(path)}"
        )
    refuse_pointer(path)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BadInput(f"{path} is not a .gguf file: it does not start with GGUF")
    try:
        return GGUFReader(path), dequantize
    # Damaged files surface as whatever NumPy trips over.
    except (
        ValueError, IndexError, KeyError, OverflowError, OSError, RecursionError,
        MemoryError,
    ) as error:  # fmt: skip
        raise BadInput(
            f"{path} is damaged, incomplete or of an unknown version: {error}; "
            "download it again"
        ) from error
