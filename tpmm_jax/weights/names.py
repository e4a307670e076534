"""One table of names: our parameters and Hugging Face's tensors, and their layouts.

Ours are stacked over layers and shaped by meaning ([L, D, H, E]); theirs are
one matrix per layer, [out, in].
"""

import math
import string
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tpmm_jax.models.config import ModelConfig


@dataclass(frozen=True)
class Name:
    """A parameter: its path, the names of its tensors, both layouts.

    Attributes:
      theirs: a tensor's name; {layer} and {expert} stand for the axes, in this order,
        that ours has in front of theirs.
      layers: the numbers of the layers that ours has; None: of all.
      inputs: how many of the other axes of ours are inputs, theirs being the
        transpose, [out, in]; 0: a bias, of one axis in theirs; None: both are alike.
    """

    path: tuple[str, ...]
    theirs: str
    inputs: int | None = None
    layers: tuple[int, ...] | None = None

    @property
    def axes(self) -> list[str]:
        """The leading axes of ours that theirs is split over."""
        return [x for _, x, _, _ in string.Formatter().parse(self.theirs) if x]

    def tensor(self, *index: int) -> str:
        """Returns the name of the tensor that holds ours[index]."""
        places = dict(zip(self.axes, index, strict=True))
        if self.layers is not None:
            places["layer"] = self.layers[places["layer"]]
        return self.theirs.format(**places)

    def tensors(self, config: ModelConfig) -> Iterator[tuple[tuple[int, ...], str]]:
        """Yields each index into the leading axes and its tensor's name."""
        layers = config.num_layers if self.layers is None else len(self.layers)
        sizes = {"layer": layers}
        if config.experts is not None:
            sizes["expert"] = config.experts.count
        for index in np.ndindex(*(sizes[axis] for axis in self.axes)):
            yield index, self.tensor(*index)

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of their tensor for that of ours[index]."""
        if self.inputs is None:
            return shape
        if self.inputs == 0:
            return (math.prod(shape),)
        return math.prod(shape[self.inputs :]), math.prod(shape[: self.inputs])

    def to_ours(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Returns one of their tensors in the shape of ours[index]."""
        return (tensor.T if self.inputs else tensor).reshape(shape)

    def to_theirs(self, part: np.ndarray) -> np.ndarray:
        """Returns ours[index] as their tensor."""
        if self.inputs is None:
            return part
        if self.inputs == 0:
            return part.reshape(-1)
        return part.reshape(math.prod(part.shape[: self.inputs]), -1).T


LAYER = "model.layers.{layer}."


def names(config: ModelConfig) -> list[Name]:
    """Returns every parameter of a model. The families share the table."""
    table = [
        Name(("embedding",), "model.embed_tokens.weight"),
        Name(("final_norm", "scale"), "model.norm.weight"),
    ]
    if config.output == "reward":
        table.append(Name(("score",), "score.weight", 1))
    elif not config.tie_embeddings:
        table.append(Name(("head",), "lm_head.weight"))
    return table + _projections(config) + _routed(config) + _norms(config)


def count_tensors(config: ModelConfig) -> int:
    """Returns how many tensors a model's files hold."""
    return sum(1 for name in names(config) for _ in name.tensors(config))


def _projections(config: ModelConfig) -> list[Name]:
    """The matrices of attention and MLP, each before its bias, if it has one."""
    table = []
    for part, ours, theirs, inputs, bias in (
        ("attention", "query", "self_attn.q_proj", 1, config.qkv_bias),
        ("attention", "key", "self_attn.k_proj", 1, config.qkv_bias),
        ("attention", "value", "self_attn.v_proj", 1, config.qkv_bias),
        ("attention", "output", "self_attn.o_proj", 2, config.output_bias),
        *(
            ("mlp", name, f"mlp.{name}_proj", 1, config.mlp_bias)
            for name in ("gate", "up", "down")
            if config.experts is None or config.experts.shared is not None
        ),
    ):
        path, name = ("layers", part), f"{LAYER}{theirs}"
        table.append(Name((*path, ours), f"{name}.weight", inputs))
        if bias:
            table.append(Name((*path, f"{ours}_bias"), f"{name}.bias", 0))
    return table


# The routed experts' tensors in a layer: router, then those of an expert.
_EXPERTS = {
    "mixtral": ("block_sparse_moe.gate", "block_sparse_moe.experts", "w1", "w3", "w2"),
    "qwen3_moe": ("mlp.gate", "mlp.experts", "gate_proj", "up_proj", "down_proj"),
}
# Those of ours that no Hugging Face model has: beside a shared one.
_BESIDE = ("mlp.router", "mlp.experts", "gate_proj", "up_proj", "down_proj")


def _routed(config: ModelConfig) -> list[Name]:
    """The routed experts' matrices."""
    if config.experts is None:
        return []
    router, experts, *matrices = _EXPERTS.get(config.family, _BESIDE)
    layers = config.experts.places(config.num_layers)
    table = [Name(("experts", "router"), f"{LAYER}{router}.weight", 1, layers)]
    for ours, theirs in zip(("gate", "up", "down"), matrices):
        name = f"{LAYER}{experts}.{{expert}}.{theirs}.weight"
        table.append(Name(("experts", ours), name, 1, layers))
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
        Name(("layers", *path, "scale"), f"{LAYER}{theirs}.weight")
        for path, theirs in norms.items()
    ]
