"""Model families as data: what their config.json leaves unsaid."""

from dataclasses import dataclass, field
from typing import Any, Literal

from tpmm_jax.models.config import (
    ExpertsConfig,
    ModelConfig,
    RopeConfig,
    check_sizes,
)


@dataclass(frozen=True, kw_only=True)
class ExpertFields:
    """How a family's config.json says what its experts are.

    Attributes:
      count, width, renormalise: names of the fields; width None: the experts are as
        wide as intermediate_size; renormalise None: gates are always renormalised.
      default_count, default_top_k, default_width: where the field is missing.
    """

    count: str
    width: str | None = None
    renormalise: str | None = None
    default_count: int
    default_top_k: int
    default_width: int | None = None

    def default(self) -> ExpertsConfig:
        """Returns the experts of a config.json that says nothing of them."""
        return ExpertsConfig(
            count=self.default_count,
            top_k=self.default_top_k,
            renormalise=self.renormalise is None,
        )


@dataclass(frozen=True, kw_only=True)
class Family:
    """What all models of a family share; its name is config.json's model_type.

    Beside the fields of ModelConfig, which are transformers' defaults for a
    config.json that lacks the field (head_dim None: width / heads; num_kv_heads
    None: heads):

    Attributes:
      architecture: class name that transformers writes into config.json.
      fields: config.json's fields that only some families have and this one reads.
      full_every: the layers that are numbered by a multiple of this, from 1, have no
        window; None: all layers have one, where there is a window.
      window_in_use: whether a window that config.json names is used unless it says
        otherwise (Qwen: no, use_sliding_window).
      experts: of a family whose feed-forwards are mixtures of experts.
    """

    architecture: str
    max_positions: int
    head_dim: int | None
    num_kv_heads: int | None
    fields: frozenset[str] = frozenset()
    norm_offset: float = 0.0
    activation: Literal["gelu_tanh", "silu"] = "silu"
    embed_scale: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    qkv_bias: bool = False
    tie_embeddings: bool = False
    norm_eps: float = 1e-6
    rope: RopeConfig = field(default_factory=RopeConfig)
    local_rope: RopeConfig | None = None
    query_pre_attn_scalar: int | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    window: int | None = None
    full_every: int | None = None
    window_in_use: bool = True
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    experts: ExpertFields | None = None


GEMMA: dict[str, Any] = {
    "norm_offset": 1.0, "activation": "gelu_tanh", "embed_scale": True,
    "tie_embeddings": True, "head_dim": 256, "bos_id": 2, "eos_ids": (1,), "pad_id": 0,
}  # fmt: skip
GEMMA_FIELDS = frozenset({"attention_bias", "hidden_activation"})
WINDOW_FIELDS = frozenset({"layer_types", "sliding_window"})
QWEN_FIELDS = WINDOW_FIELDS | {"max_window_layers", "use_sliding_window"}

FAMILIES: dict[str, Family] = {
    "gemma": Family(
        architecture="GemmaForCausalLM",
        fields=GEMMA_FIELDS,
        max_positions=8192,
        num_kv_heads=16,
        **GEMMA,
    ),
    "gemma2": Family(
        architecture="Gemma2ForCausalLM",
        fields=GEMMA_FIELDS
        | WINDOW_FIELDS
        | {
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "query_pre_attn_scalar",
            "sliding_window_size",
        },
        max_positions=8192,
        num_kv_heads=4,
        post_norms=True,
        query_pre_attn_scalar=256,
        attention_softcap=50.0,
        final_softcap=30.0,
        window=4096,
        full_every=2,
        **GEMMA,
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        # Not attn_logit_softcapping: transformers stores and never uses it.
        fields=GEMMA_FIELDS
        | WINDOW_FIELDS
        | {
            "_sliding_window_pattern",
            "final_logit_softcapping",
            "query_pre_attn_scalar",
            "rope_local_base_freq",
            "sliding_window_pattern",
        },
        max_positions=131_072,
        num_kv_heads=4,
        qk_norm=True,
        post_norms=True,
        rope=RopeConfig(theta=1_000_000.0),
        local_rope=RopeConfig(theta=10_000.0),
        query_pre_attn_scalar=256,
        window=4096,
        full_every=6,
        **GEMMA,
    ),
    "llama": Family(
        architecture="LlamaForCausalLM",
        fields=frozenset({"attention_bias", "mlp_bias"}),
        max_positions=2048,
        head_dim=None,
        num_kv_heads=None,
        bos_id=1,
        eos_ids=(2,),
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        fields=frozenset({"sliding_window"}),
        max_positions=131_072,
        head_dim=None,
        num_kv_heads=8,
        window=4096,
        bos_id=1,
        eos_ids=(2,),
    ),
    "mixtral": Family(
        architecture="MixtralForCausalLM",
        fields=frozenset(
            {"num_experts_per_tok", "num_local_experts", "sliding_window"}
        ),
        max_positions=131_072,
        head_dim=None,
        num_kv_heads=8,
        norm_eps=1e-5,
        rope=RopeConfig(theta=1_000_000.0),
        bos_id=1,
        eos_ids=(2,),
        experts=ExpertFields(
            count="num_local_experts", default_count=8, default_top_k=2
        ),
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        fields=QWEN_FIELDS,
        max_positions=32_768,
        head_dim=None,
        num_kv_heads=32,
        qkv_bias=True,
        window=4096,
        window_in_use=False,
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        fields=QWEN_FIELDS | {"attention_bias"},
        max_positions=32_768,
        head_dim=128,
        num_kv_heads=32,
        qk_norm=True,
        window=4096,
        window_in_use=False,
    ),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM",
        fields=frozenset(
            {
                *("attention_bias", "decoder_sparse_step", "mlp_only_layers"),
                *("moe_intermediate_size", "norm_topk_prob", "num_experts"),
                *("num_experts_per_tok", "num_local_experts"),
                *("sliding_window", "use_sliding_window"),
            }
        ),
        max_positions=32_768,
        head_dim=None,
        num_kv_heads=4,
        qk_norm=True,
        window=4096,
        window_in_use=False,
        experts=ExpertFields(
            count="num_experts",
            width="moe_intermediate_size",
            renormalise="norm_topk_prob",
            default_count=128,
            default_top_k=8,
            default_width=768,
        ),
    ),
}

# Family's fields that are ModelConfig's too, and the same for every size.
SHARED = (
    "activation", "attention_softcap", "embed_scale", "final_softcap", "local_rope",
    "max_positions", "norm_eps", "norm_offset", "post_norms", "qk_norm", "qkv_bias",
    "query_pre_attn_scalar", "rope", "tie_embeddings",
)  # fmt: skip


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
    **fields: Any,
) -> ModelConfig:
    """Returns a ModelConfig; what is not given is the family's default.

    Args:
      head_dim: None: the family's, or width / num_heads.
      fields: further fields of ModelConfig. A window without windowed_layers is that
        of the family's pattern.

    Raises:
      BadInput: a size below 1 or beyond ``config.LIMITS``.
    """
    f = FAMILIES[family]
    values = {name: getattr(f, name) for name in SHARED} | fields
    if f.experts is not None and values.get("experts") is None:
        values["experts"] = f.experts.default()
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "width": width,
        "mlp_width": mlp_width,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
    }
    check_sizes({**values, **sizes, "head_dim": head_dim})
    window = values.get("window", f.window if f.window_in_use else None)
    windowed = values.get("windowed_layers")
    if windowed is None:
        windowed = windowed_layers(num_layers, f.full_every)
    # One way to say that no layer has a window.
    used = window is not None and any(windowed)
    values["window"] = window if used else None
    values["windowed_layers"] = tuple(windowed) if used else ()
    return ModelConfig(
        family=family,
        head_dim=head_dim or f.head_dim or width // num_heads,
        **sizes,
        **values,
    )


def windowed_layers(num_layers: int, full_every: int | None) -> tuple[bool, ...]:
    """Returns which layers have a window where every n-th has none."""
    return tuple(
        full_every is None or (layer + 1) % full_every > 0
        for layer in range(num_layers)
    )
