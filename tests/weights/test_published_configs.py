"""The config.json of well-known models, as published, gives their published size."""

import pytest

from tpmm_jax.models import Decoder
from tpmm_jax.weights.hf_config import parse_config

COMMON = {"initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16"}
GEMMA = {
    **COMMON, "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2,
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
}  # fmt: skip
GEMMA_3 = {
    **GEMMA, "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"],
    "attn_logit_softcapping": None, "final_logit_softcapping": None,
    "max_position_embeddings": 32768, "num_attention_heads": 4,
    "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rope_scaling": None,
    "rope_local_base_freq": 10000, "rope_theta": 1000000, "sliding_window": 512,
    "vocab_size": 262144,
}  # fmt: skip
SILU = {**COMMON, "hidden_act": "silu"}
MISTRAL = {
    **SILU, "model_type": "mistral", "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 4096,
    "intermediate_size": 14336, "max_position_embeddings": 32768,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
QWEN = {
    **SILU, "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000, "tie_word_embeddings": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip

# name: (config.json, parameters, window, layers with a window)
PUBLISHED = {
    "gemma-2b": (
        {
            **GEMMA, "model_type": "gemma", "hidden_act": "gelu", "eos_token_id": 1,
            "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8,
            "max_position_embeddings": 8192, "num_hidden_layers": 18,
            "num_key_value_heads": 1, "rope_scaling": None, "rope_theta": 10000.0,
            "vocab_size": 256000,
        },
        2_506_172_416, None, 0,
    ),
    "gemma-2-2b-it": (
        {
            **GEMMA, "model_type": "gemma2", "attn_logit_softcapping": 50.0,
            "cache_implementation": "hybrid", "eos_token_id": [1, 107],
            "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "max_position_embeddings": 8192, "num_attention_heads": 8,
            "num_key_value_heads": 4, "query_pre_attn_scalar": 256,
            "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 256000,
        },
        2_614_341_888, 4096, 13,
    ),
    "gemma-3-1b-it": (
        {
            **GEMMA_3, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
            "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
            "sliding_window_pattern": 6,
        },
        999_885_952, 512, 22,
    ),
    "gemma-3-270m": (
        {
            **GEMMA_3, "_sliding_window_pattern": 6, "eos_token_id": 1,
            "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
            "use_bidirectional_attention": False,
        },
        268_098_176, 512, 15,
    ),
    "Llama-2-7b": (
        {
            **SILU, "_name_or_path": "x", "model_type": "llama", "bos_token_id": 1,
            "eos_token_id": 2, "hidden_size": 4096, "intermediate_size": 11008,
            "max_position_embeddings": 4096, "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1,
            "rms_norm_eps": 1e-5, "rope_scaling": None, "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        6_738_415_616, None, 0,
    ),
    "Llama-3.2-1B-Instruct": (
        {
            **SILU, "model_type": "llama", "attention_bias": False, "mlp_bias": False,
            "attention_dropout": 0.0, "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
            "hidden_size": 2048, "intermediate_size": 8192, "pretraining_tp": 1,
            "max_position_embeddings": 131072, "num_attention_heads": 32,
            "num_hidden_layers": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
            "rope_scaling": {
                "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3",
            },
            "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256,
        },
        1_235_814_400, None, 0,
    ),
    "Mistral-7B-v0.1": (
        {
            **MISTRAL, "rope_theta": 10000.0, "sliding_window": 4096,
            "vocab_size": 32000,
        },
        7_241_732_096, 4096, 32,
    ),
    "Mistral-7B-v0.3": (
        {
            **MISTRAL, "attention_dropout": 0.0, "rope_theta": 1000000.0,
            "sliding_window": None, "vocab_size": 32768,
        },
        7_248_023_552, None, 0,
    ),
    "Qwen2.5-0.5B-Instruct": (
        {
            **QWEN, "model_type": "qwen2", "hidden_size": 896, "max_window_layers": 21,
            "intermediate_size": 4864, "max_position_embeddings": 32768,
            "num_attention_heads": 14, "num_hidden_layers": 24,
            "num_key_value_heads": 2, "sliding_window": 32768,
        },
        494_032_768, None, 0,
    ),
    "Qwen3-0.6B": (
        {
            **QWEN, "model_type": "qwen3", "attention_bias": False, "head_dim": 128,
            "hidden_size": 1024, "intermediate_size": 3072, "max_window_layers": 28,
            "max_position_embeddings": 40960, "num_attention_heads": 16,
            "num_hidden_layers": 28, "num_key_value_heads": 8, "rope_scaling": None,
            "sliding_window": None,
        },
        596_049_920, None, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config(name):
    content, parameters, window, windowed = PUBLISHED[name]
    config = parse_config(content, "config.json")
    assert Decoder(config).num_params == parameters
    assert (config.window, sum(config.windowed_layers)) == (window, windowed)
