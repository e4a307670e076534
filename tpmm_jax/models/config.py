"""What a decoder is, as data. A model family is a choice of these fields."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax

from tpmm_jax.errors import BadInput

# Many times the sizes of any published model. What lies beyond is a slip or worse, and
# would end in an overflow, in no memory, or never.
LIMITS = {
    "vocab_size": 2**24,
    "width": 2**18,
    "mlp_width": 2**21,
    "num_layers": 2000,
    "num_heads": 2**14,
    "num_kv_heads": 2**14,
    "head_dim": 2**14,
    "max_positions": 2**31 - 1,
    "window": 2**31 - 1,
    "expert_count": 2**14,
}


def check_sizes(sizes: Mapping[str, Any]) -> None:
    """Raises BadInput for sizes, by our names, that are below 1 or beyond LIMITS."""
    wrong = [
        f"{name} is {sizes[name]:,}; wanted 1 to {most:,}"
        for name, most in LIMITS.items()
        if sizes.get(name) is not None and not 1 <= sizes[name] <= most
    ]
    if wrong:
        raise BadInput("no model has these sizes: " + "; ".join(wrong))


def check_memory(need: int) -> None:
    """Raises BadInput for random parameters of more bytes than there can be."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    devices = [d.memory_stats() for d in jax.local_devices()]
    held = sum((stats or {}).get("bytes_limit", 0) for stats in devices)
    if need > max(pages, held):
        raise BadInput(
            f"a new model of these sizes takes {need / 1e9:,.0f} GB; this machine has "
            f"{max(pages, held) / 1e9:,.0f} GB: choose smaller ones"
        )


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding.

    Attributes:
      theta: base of the wavelengths.
      scaling: "none"; "linear" (all wavelengths times factor); or "llama3" (Llama
        3.1's stretching of low frequencies).
      factor: of "linear" and "llama3".
      low_freq_factor, high_freq_factor, original_max_positions: of "llama3".
    """

    theta: float = 10_000.0
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Routed experts of some layers.

        y = s E_shared(x) + (1 - s) sum_{i in top k} g_i(x) E_i(x)

    Attributes:
      count: routed experts of a layer.
      top_k: how many of them a token passes through.
      shared: s; None: there is no shared expert, and y is the sum alone.
      renormalise: whether the gates of a token's experts sum to 1; otherwise they are
        their shares of the softmax over all experts.
      layers: which layers have routed experts; the others keep the shared expert alone,
        as an ordinary feed-forward. Empty: all.
    """

    count: int
    top_k: int
    shared: float | None = None
    renormalise: bool = True
    layers: tuple[bool, ...] = ()

    def places(self, num_layers: int) -> tuple[int, ...]:
        """Returns the numbers of the layers that have routed experts."""
        has = self.layers or (True,) * num_layers
        return tuple(layer for layer in range(num_layers) if has[layer])


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer.

    Attributes:
      family: name in ``families.FAMILIES``; decides the names of the weights.
      output: what the hidden states become: logits of the next token, or one reward of
        a whole sequence; then there is a scalar head, and none over the vocabulary.
      norm_offset: what a stored RMSNorm weight is added to (Gemma 1.0, others 0.0).
      embed_scale: whether embeddings are multiplied by sqrt(width) (Gemma).
      qk_norm: RMSNorm over each head's query and key (Gemma 3, Qwen 3).
      rope: rotary positions, of every layer or of those without a window.
      local_rope: rotary positions of the layers with a window, where they differ.
      post_norms: RMSNorm after attention and MLP too (Gemma 2 and 3).
      qkv_bias, output_bias: biases of the attention's projections.
      mlp_bias: biases of gate, up and down.
      query_pre_attn_scalar: scores are divided by its square root; None: head_dim.
      attention_softcap: cap of the scores, ``cap * tanh(scores / cap)``.
      final_softcap: cap of the logits, likewise; None: no cap.
      window: how many tokens a layer with a window sees, the query's own included.
      windowed_layers: which layers have the window; empty where window is None.
      eos_ids: every id that ends a sequence.
      experts: routed experts beside or in place of the feed-forwards; None: none.
    """

    family: str
    vocab_size: int
    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float
    norm_offset: float
    activation: Literal["gelu_tanh", "silu"]
    embed_scale: bool
    tie_embeddings: bool
    qk_norm: bool
    rope: RopeConfig
    local_rope: RopeConfig | None = None
    post_norms: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_pre_attn_scalar: int | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    window: int | None = None
    windowed_layers: tuple[bool, ...] = ()
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    output: Literal["tokens", "reward"] = "tokens"
    experts: ExpertsConfig | None = None

    @property
    def feed_forward(self) -> str:
        """Name in ``feed_forward.FEED_FORWARD``."""
        return "gated" if self.experts is None else "experts"
