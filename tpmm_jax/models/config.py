"""What a decoder is, as data. A model family is a choice of these fields."""

from dataclasses import dataclass
from typing import Literal


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
class ModelConfig:
    """A decoder-only transformer.

    Attributes:
      family: name in ``families.FAMILIES``; decides the names of the weights.
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

    @property
    def feed_forward(self) -> str:
        """Name in ``feed_forward.FEED_FORWARD``."""
        return "gated"
