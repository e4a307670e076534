"""Full-size models as they were published: sizes alone, to plan with."""

from tpmm_jax.models.config import ExpertsConfig, ModelConfig, RopeConfig
from tpmm_jax.models.families import make_config

# Published sizes (Gemma 2403.08295 table 1; Gemma 2 2408.00118 tables 1 and 2;
# Gemma 3 2503.19786; Llama 3 2407.21783 table 3; Mistral 7B 2310.06825 table 1; the
# others, and what the reports leave out, from the models' config.json).
SIZES: dict[str, ModelConfig] = {
    "gemma-2b": make_config(
        "gemma", vocab_size=256_000, width=2048, mlp_width=16_384, num_layers=18,
        num_heads=8, num_kv_heads=1, bos_id=2, eos_ids=(1,), pad_id=0,
    ),
    "gemma-7b": make_config(
        "gemma", vocab_size=256_000, width=3072, mlp_width=24_576, num_layers=28,
        num_heads=16, num_kv_heads=16, bos_id=2, eos_ids=(1,), pad_id=0,
    ),
    "gemma2-2b": make_config(
        "gemma2", vocab_size=256_000, width=2304, mlp_width=9216, num_layers=26,
        num_heads=8, num_kv_heads=4, bos_id=2, eos_ids=(1,), pad_id=0,
    ),
    "gemma2-9b": make_config(
        "gemma2", vocab_size=256_000, width=3584, mlp_width=14_336, num_layers=42,
        num_heads=16, num_kv_heads=8, bos_id=2, eos_ids=(1,), pad_id=0,
    ),
    "gemma2-27b": make_config(
        "gemma2", vocab_size=256_000, width=4608, mlp_width=36_864, num_layers=46,
        num_heads=32, num_kv_heads=16, head_dim=128, query_pre_attn_scalar=144,
        bos_id=2, eos_ids=(1,), pad_id=0,
    ),
    "gemma3-270m": make_config(
        "gemma3_text", vocab_size=262_144, width=640, mlp_width=2048, num_layers=18,
        num_heads=4, num_kv_heads=1, max_positions=32_768, window=512,
        bos_id=2, eos_ids=(1, 106), pad_id=0,
    ),
    "gemma3-1b": make_config(
        "gemma3_text", vocab_size=262_144, width=1152, mlp_width=6912, num_layers=26,
        num_heads=4, num_kv_heads=1, max_positions=32_768, window=512,
        bos_id=2, eos_ids=(1, 106), pad_id=0,
    ),
    "smollm2-135m": make_config(
        "llama", vocab_size=49_152, width=576, mlp_width=1536, num_layers=30,
        num_heads=9, num_kv_heads=3, max_positions=8192, norm_eps=1e-5,
        tie_embeddings=True, rope=RopeConfig(theta=100_000.0),
        bos_id=1, eos_ids=(2,), pad_id=2,
    ),
    "smollm2-360m": make_config(
        "llama", vocab_size=49_152, width=960, mlp_width=2560, num_layers=32,
        num_heads=15, num_kv_heads=5, max_positions=8192, norm_eps=1e-5,
        tie_embeddings=True, rope=RopeConfig(theta=100_000.0),
        bos_id=1, eos_ids=(2,), pad_id=2,
    ),
    "llama3-8b": make_config(
        "llama", vocab_size=128_256, width=4096, mlp_width=14_336, num_layers=32,
        num_heads=32, num_kv_heads=8, max_positions=8192, norm_eps=1e-5,
        rope=RopeConfig(theta=500_000.0), bos_id=128_000, eos_ids=(128_001,),
    ),
    "llama3.1-8b": make_config(
        "llama", vocab_size=128_256, width=4096, mlp_width=14_336, num_layers=32,
        num_heads=32, num_kv_heads=8, max_positions=131_072, norm_eps=1e-5,
        rope=RopeConfig(theta=500_000.0, scaling="llama3", factor=8.0),
        bos_id=128_000, eos_ids=(128_001,),
    ),
    "llama3.2-1b": make_config(
        "llama", vocab_size=128_256, width=2048, mlp_width=8192, num_layers=16,
        num_heads=32, num_kv_heads=8, max_positions=131_072, norm_eps=1e-5,
        tie_embeddings=True,
        rope=RopeConfig(theta=500_000.0, scaling="llama3", factor=32.0),
        bos_id=128_000, eos_ids=(128_001,),
    ),
    "mistral-7b": make_config(
        "mistral", vocab_size=32_000, width=4096, mlp_width=14_336, num_layers=32,
        num_heads=32, num_kv_heads=8, max_positions=32_768, norm_eps=1e-5,
        bos_id=1, eos_ids=(2,),
    ),
    "mixtral-8x7b": make_config(
        "mixtral", vocab_size=32_000, width=4096, mlp_width=14_336, num_layers=32,
        num_heads=32, num_kv_heads=8, max_positions=32_768, bos_id=1, eos_ids=(2,),
    ),
    "qwen2.5-0.5b": make_config(
        "qwen2", vocab_size=151_936, width=896, mlp_width=4864, num_layers=24,
        num_heads=14, num_kv_heads=2, tie_embeddings=True,
        rope=RopeConfig(theta=1_000_000.0), bos_id=151_643, eos_ids=(151_643,),
    ),
    "qwen2.5-7b": make_config(
        "qwen2", vocab_size=152_064, width=3584, mlp_width=18_944, num_layers=28,
        num_heads=28, num_kv_heads=4, max_positions=131_072,
        rope=RopeConfig(theta=1_000_000.0), bos_id=151_643, eos_ids=(151_643,),
    ),
    "qwen3-0.6b": make_config(
        "qwen3", vocab_size=151_936, width=1024, mlp_width=3072, num_layers=28,
        num_heads=16, num_kv_heads=8, max_positions=40_960, tie_embeddings=True,
        rope=RopeConfig(theta=1_000_000.0), bos_id=151_643, eos_ids=(151_645,),
    ),
    "qwen3-30b-a3b": make_config(
        "qwen3_moe", vocab_size=151_936, width=2048, mlp_width=768, num_layers=48,
        num_heads=32, num_kv_heads=4, head_dim=128, max_positions=40_960,
        rope=RopeConfig(theta=1_000_000.0), bos_id=151_643, eos_ids=(151_645,),
        experts=ExpertsConfig(count=128, top_k=8),
    ),
}  # fmt: skip

# Models of the hub that have these sizes.
HUB = {
    "google/gemma-2b": "gemma-2b",
    "google/gemma-2b-it": "gemma-2b",
    "google/gemma-7b": "gemma-7b",
    "google/gemma-7b-it": "gemma-7b",
    "google/gemma-2-2b": "gemma2-2b",
    "google/gemma-2-2b-it": "gemma2-2b",
    "google/gemma-2-9b": "gemma2-9b",
    "google/gemma-2-9b-it": "gemma2-9b",
    "google/gemma-2-27b": "gemma2-27b",
    "google/gemma-2-27b-it": "gemma2-27b",
    "google/gemma-3-270m": "gemma3-270m",
    "google/gemma-3-270m-it": "gemma3-270m",
    "google/gemma-3-1b-pt": "gemma3-1b",
    "google/gemma-3-1b-it": "gemma3-1b",
    "HuggingFaceTB/SmolLM2-135M": "smollm2-135m",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2-135m",
    "HuggingFaceTB/SmolLM2-360M": "smollm2-360m",
    "HuggingFaceTB/SmolLM2-360M-Instruct": "smollm2-360m",
    "meta-llama/Meta-Llama-3-8B": "llama3-8b",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama3-8b",
    "meta-llama/Llama-3.1-8B": "llama3.1-8b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama3.1-8b",
    "meta-llama/Llama-3.2-1B": "llama3.2-1b",
    "meta-llama/Llama-3.2-1B-Instruct": "llama3.2-1b",
    "mistralai/Mistral-7B-v0.1": "mistral-7b",
    "mistralai/Mixtral-8x7B-v0.1": "mixtral-8x7b",
    "Qwen/Qwen2.5-0.5B": "qwen2.5-0.5b",
    "Qwen/Qwen2.5-0.5B-Instruct": "qwen2.5-0.5b",
    "Qwen/Qwen2.5-7B": "qwen2.5-7b",
    "Qwen/Qwen3-0.6B": "qwen3-0.6b",
    "Qwen/Qwen3-30B-A3B": "qwen3-30b-a3b",
}
