"""What a decoder is, as data. A model family is a choice of these fields."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding.

    Attributes:
      theta: base of the wavelengths.
      scaling: "none", or "llama3" (Llama 3.1's stretching of low frequencies).
      factor, low_freq_factor, high_freq_factor, original_max_positions: of "llama3".
    """

    theta: float = 10_000.0
    scaling: Literal["none", "llama3"] = "none"
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
      qk_norm: RMSNorm over each head's query and key (Qwen 3).
      final_softcap: cap of the logits, ``cap * tanh(logits / cap)``; None: no cap.
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
    final_softcap: float | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    @property
    def num_params(self) -> int:
        """Number of weights."""
        heads, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = 2 * self.width * (heads + kv) + 3 * self.width * self.mlp_width
        layer += 2 * self.width + (2 * self.head_dim if self.qk_norm else 0)
        embeddings = self.vocab_size * self.width * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + embeddings + self.width
