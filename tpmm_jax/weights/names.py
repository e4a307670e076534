"""One table of names: our parameters and Hugging Face's tensors, and their layouts.

Ours are stacked over layers and shaped by meaning ([L, D, H, E]); theirs are
one matrix a layer, [out, in].
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tpmm_jax.models.config import ModelConfig

Reshape = Callable[[np.ndarray, ModelConfig], np.ndarray]


@dataclass(frozen=True)
class Name:
    """A parameter: its path, its tensor's name ({} is the layer), both layouts."""

    path: tuple[str, ...]
    theirs: str
    to_ours: Reshape
    to_theirs: Reshape

    @property
    def stacked(self) -> bool:
        return "{}" in self.theirs


def _keep(x: np.ndarray, c: ModelConfig) -> np.ndarray:
    return x


def _transpose(x: np.ndarray, c: ModelConfig) -> np.ndarray:
    return x.T


def _heads_to_ours(x: np.ndarray, c: ModelConfig) -> np.ndarray:
    return x.T.reshape(c.width, -1, c.head_dim)


def _heads_to_theirs(x: np.ndarray, c: ModelConfig) -> np.ndarray:
    return x.reshape(c.width, -1).T


def _output_to_ours(x: np.ndarray, c: ModelConfig) -> np.ndarray:
    return x.T.reshape(c.num_heads, c.head_dim, c.width)


def _output_to_theirs(x: np.ndarray, c: ModelConfig) -> np.ndarray:
    return x.reshape(-1, c.width).T


def names(config: ModelConfig) -> list[Name]:
    """Returns every parameter of a model. Gemma, Llama and Qwen 3 share the table."""
    layer = "model.layers.{}."
    table = [
        Name(("embedding",), "model.embed_tokens.weight", _keep, _keep),
        Name(("final_norm", "scale"), "model.norm.weight", _keep, _keep),
    ]
    if not config.tie_embeddings:
        table.append(Name(("head",), "lm_head.weight", _keep, _keep))
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
        table.append(
            Name(
                ("layers", "attention", ours),
                f"{layer}self_attn.{theirs}_proj.weight",
                _heads_to_ours,
                _heads_to_theirs,
            )
        )
    table.append(
        Name(
            ("layers", "attention", "output"),
            f"{layer}self_attn.o_proj.weight",
            _output_to_ours,
            _output_to_theirs,
        )
    )
    for part in ("gate", "up", "down"):
        theirs = f"{layer}mlp.{part}_proj.weight"
        table.append(Name(("layers", "mlp", part), theirs, _transpose, _transpose))
    norms: dict[tuple[str, ...], str] = {
        ("attention_norm",): "input_layernorm",
        ("mlp_norm",): "post_attention_layernorm",
    }
    if config.qk_norm:
        norms[("attention", "query_norm")] = "self_attn.q_norm"
        norms[("attention", "key_norm")] = "self_attn.k_norm"
    for path, theirs in norms.items():
        name = f"{layer}{theirs}.weight"
        table.append(Name(("layers", *path, "scale"), name, _keep, _keep))
    return table
