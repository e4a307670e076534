"""One table of names: our parameters and Hugging Face's tensors, and their layouts.

Ours are stacked over layers and shaped by meaning ([L, D, H, E]); theirs are
one matrix per layer, [out, in].
"""

import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tpmm_jax.models.config import ModelConfig

Reshape = Callable[[np.ndarray, ModelConfig], np.ndarray]


@dataclass(frozen=True)
class Name:
    """A parameter: its path, the names of its tensors, both layouts.

    Attributes:
      theirs: a tensor's name; {layer} and {expert} stand for the axes, in this order,
        that ours has in front of theirs.
    """

    path: tuple[str, ...]
    theirs: str
    to_ours: Reshape
    to_theirs: Reshape

    @property
    def axes(self) -> list[str]:
        """The leading axes of ours that theirs is split over."""
        return [x for _, x, _, _ in string.Formatter().parse(self.theirs) if x]

    def tensor(self, *index: int) -> str:
        """Returns the name of the tensor that holds ours[index]."""
        return self.theirs.format(**dict(zip(self.axes, index, strict=True)))

    def tensors(self, config: ModelConfig) -> Iterator[tuple[tuple[int, ...], str]]:
        """Yields each index into the leading axes and its tensor's name."""
        sizes = {"layer": config.num_layers}
        for index in np.ndindex(*(sizes[axis] for axis in self.axes)):
            yield index, self.tensor(*index)


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


def _bias_to_ours(x: np.ndarray, c: ModelConfig) -> np.ndarray:
    return x.reshape(-1, c.head_dim)


def _bias_to_theirs(x: np.ndarray, c: ModelConfig) -> np.ndarray:
    return x.reshape(-1)


def names(config: ModelConfig) -> list[Name]:
    """Returns every parameter of a model. The families share the table."""
    table = [
        Name(("embedding",), "model.embed_tokens.weight", _keep, _keep),
        Name(("final_norm", "scale"), "model.norm.weight", _keep, _keep),
    ]
    if not config.tie_embeddings:
        table.append(Name(("head",), "lm_head.weight", _keep, _keep))
    return table + _attention(config) + _gated(config) + _norms(config)


LAYER = "model.layers.{layer}."


def _attention(config: ModelConfig) -> list[Name]:
    path, theirs, table = ("layers", "attention"), f"{LAYER}self_attn.", []
    for ours, part in (("query", "q"), ("key", "k"), ("value", "v")):
        name = f"{theirs}{part}_proj"
        table.append(
            Name((*path, ours), f"{name}.weight", _heads_to_ours, _heads_to_theirs)
        )
        if config.qkv_bias:
            ours = f"{ours}_bias"
            table.append(
                Name((*path, ours), f"{name}.bias", _bias_to_ours, _bias_to_theirs)
            )
    name = f"{theirs}o_proj"
    table.append(
        Name((*path, "output"), f"{name}.weight", _output_to_ours, _output_to_theirs)
    )
    if config.output_bias:
        table.append(Name((*path, "output_bias"), f"{name}.bias", _keep, _keep))
    return table


def _gated(config: ModelConfig) -> list[Name]:
    table = []
    for part in ("gate", "up", "down"):
        path, theirs = ("layers", "mlp", part), f"{LAYER}mlp.{part}_proj"
        table.append(Name(path, f"{theirs}.weight", _transpose, _transpose))
        if config.mlp_bias:
            path = ("layers", "mlp", f"{part}_bias")
            table.append(Name(path, f"{theirs}.bias", _keep, _keep))
    return table


def _norms(config: ModelConfig) -> list[Name]:
    norms: dict[tuple[str, ...], str] = {
        ("attention_norm",): "input_layernorm",
        ("mlp_norm",): "post_attention_layernorm",
    }
    if config.post_norms:
        # Theirs is then the norm after attention; another stands before the MLP.
        norms |= {
            ("attention_post_norm",): "post_attention_layernorm",
            ("mlp_norm",): "pre_feedforward_layernorm",
            ("mlp_post_norm",): "post_feedforward_layernorm",
        }
    if config.qk_norm:
        norms[("attention", "query_norm")] = "self_attn.q_norm"
        norms[("attention", "key_norm")] = "self_attn.k_norm"
    return [
        Name(("layers", *path, "scale"), f"{LAYER}{theirs}.weight", _keep, _keep)
        for path, theirs in norms.items()
    ]
