"""Model families as data: what their config.json leaves unsaid, and full sizes."""

from dataclasses import dataclass
from typing import Literal

from tpmm_jax.models.config import ModelConfig, RopeConfig


@dataclass(frozen=True, kw_only=True)
class Family:
    """What all models of a family share.

    Attributes:
      architecture: class name that transformers writes into config.json.
      tie_embeddings, norm_eps, rope_theta, max_positions, head_dim: transformers'
        defaults for a config.json that lacks the field (head_dim None: width/heads).
    """

    architecture: str
    norm_offset: float
    activation: Literal["gelu_tanh", "silu"]
    embed_scale: bool
    qk_norm: bool
    tie_embeddings: bool
    norm_eps: float
    rope_theta: float
    max_positions: int
    head_dim: int | None


FAMILIES: dict[str, Family] = {
    "gemma": Family(
        architecture="GemmaForCausalLM",
        norm_offset=1.0,
        activation="gelu_tanh",
        embed_scale=True,
        qk_norm=False,
        tie_embeddings=True,
        norm_eps=1e-6,
        rope_theta=10_000.0,
        max_positions=8192,
        head_dim=256,
    ),
    "llama": Family(
        architecture="LlamaForCausalLM",
        norm_offset=0.0,
        activation="silu",
        embed_scale=False,
        qk_norm=False,
        tie_embeddings=False,
        norm_eps=1e-6,
        rope_theta=10_000.0,
        max_positions=2048,
        head_dim=None,
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        norm_offset=0.0,
        activation="silu",
        embed_scale=False,
        qk_norm=True,
        tie_embeddings=False,
        norm_eps=1e-6,
        rope_theta=10_000.0,
        max_positions=32768,
        head_dim=128,
    ),
}


def make_config(
    family: str,
    *,
    vocab_size: int,
    width: int,
    mlp_width: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int | None = None,
    max_positions: int | None = None,
    norm_eps: float | None = None,
    tie_embeddings: bool | None = None,
    rope: RopeConfig | None = None,
    bos_id: int | None = None,
    eos_ids: tuple[int, ...] = (),
    pad_id: int | None = None,
) -> ModelConfig:
    """Returns a ModelConfig; what is not given is the family's default."""
    f = FAMILIES[family]
    return ModelConfig(
        family=family,
        vocab_size=vocab_size,
        width=width,
        mlp_width=mlp_width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim or f.head_dim or width // num_heads,
        max_positions=max_positions or f.max_positions,
        norm_eps=f.norm_eps if norm_eps is None else norm_eps,
        norm_offset=f.norm_offset,
        activation=f.activation,
        embed_scale=f.embed_scale,
        tie_embeddings=f.tie_embeddings if tie_embeddings is None else tie_embeddings,
        qk_norm=f.qk_norm,
        rope=rope or RopeConfig(theta=f.rope_theta),
        bos_id=bos_id,
        eos_ids=eos_ids,
        pad_id=pad_id,
    )


# Published sizes (Gemma report 2403.08295 table 1; Llama 3 2407.21783; SmolLM2's
# and Qwen3's config.json).
SIZES: dict[str, ModelConfig] = {
    "gemma-2b": make_config(
        "gemma", vocab_size=256_000, width=2048, mlp_width=16_384, num_layers=18,
        num_heads=8, num_kv_heads=1, bos_id=2, eos_ids=(1,), pad_id=0,
    ),
    "gemma-7b": make_config(
        "gemma", vocab_size=256_000, width=3072, mlp_width=24_576, num_layers=28,
        num_heads=16, num_kv_heads=16, bos_id=2, eos_ids=(1,), pad_id=0,
    ),
    "smollm2-135m": make_config(
        "llama", vocab_size=49_152, width=576, mlp_width=1536, num_layers=30,
        num_heads=9, num_kv_heads=3, max_positions=8192, norm_eps=1e-5,
        tie_embeddings=True, rope=RopeConfig(theta=100_000.0),
        bos_id=1, eos_ids=(2,), pad_id=2,
    ),
    "llama3-8b": make_config(
        "llama", vocab_size=128_256, width=4096, mlp_width=14_336, num_layers=32,
        num_heads=32, num_kv_heads=8, max_positions=8192, norm_eps=1e-5,
        rope=RopeConfig(theta=500_000.0), bos_id=128_000, eos_ids=(128_001,),
    ),
    "qwen3-0.6b": make_config(
        "qwen3", vocab_size=151_936, width=1024, mlp_width=3072, num_layers=28,
        num_heads=16, num_kv_heads=8, max_positions=40_960, tie_embeddings=True,
        rope=RopeConfig(theta=1_000_000.0), bos_id=151_643, eos_ids=(151_645,),
    ),
}  # fmt: skip
