"""Published config.json files give the published size; neutral fields change nothing.

Fields that mean something are refused by name.
"""

import pytest

from tpmm_jax.errors import BadInput
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


# What transformers 4.28 to 4.57 wrote for every model, whatever it was: the attributes
# that PretrainedConfig.__init__ sets, at their defaults.
DUMP = {
    "_attn_implementation_autoset": False, "_commit_hash": None, "_name_or_path": "",
    "add_cross_attention": False, "architectures": None, "bad_words_ids": None,
    "begin_suppress_tokens": None, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "decoder_start_token_id": None,
    "diversity_penalty": 0.0, "do_sample": False, "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0, "exponential_decay_length_penalty": None,
    "finetuning_task": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": False,
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0, "max_length": 20, "min_length": 0,
    "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1,
    "num_return_sequences": 1, "output_attentions": False,
    "output_hidden_states": False, "output_scores": False, "prefix": None,
    "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False,
    "repetition_penalty": 1.0, "return_dict": True, "return_dict_in_generate": False,
    "sep_token_id": None, "suppress_tokens": None, "task_specific_params": None,
    "temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False,
    "tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torchscript": False,
    "transformers_version": "4.46.3", "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_dump_of_transformers_4_is_the_same_model(name):
    content = PUBLISHED[name][0]
    assert parse_config(DUMP | content, "c") == parse_config(content, "c")


@pytest.mark.parametrize(
    "field, value",
    [
        ("quantization_config", None), ("quantization_config", {}), ("num_labels", 1),
        ("neftune_noise_alpha", 0.0), ("gradient_checkpointing", True), ("prefix", ""),
        ("attn_implementation", "sdpa"), ("hidden_dropout_prob", 0.0),
        ("sep_token_id", 5), ("is_causal", True), ("auto_map", None),
        ("per_layer_config", None), ("vision_config", None), ("unheard_of", None),
        ("max_window_layers", None), ("sliding_window_pattern", None),
        ("use_sliding_window", None), ("sliding_window_size", None),
        ("layer_types", None), ("rope_scaling", None), ("rms_norm_eps", None),
        ("internal_version", "7b-alpha-v2"), ("unsloth_version", "2026.3.3"),
        ("model_name", "org/name"), ("max_new_tokens", 512), ("quantization", {}),
        ("architectures", "OneForCausalLM"), ("architectures", 5), ("id2label", 3),
        ("keys_to_ignore_at_inference", ["past_key_values"]), ("use_flash_attn", True),
        ("base_model_tp_plan", {"layers.*": "colwise"}), ("max_seq_len", 4096),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["gemma-2-2b-it", "gemma-3-1b-it", "Qwen3-0.6B"])
def test_null_and_neutral_fields_change_nothing(name, field, value):
    content = PUBLISHED[name][0]
    if value is None:  # null means absent
        content = {k: v for k, v in content.items() if k != field}
    wanted = parse_config(content, "config.json")
    assert parse_config(content | {field: value}, "config.json") == wanted


@pytest.mark.parametrize(
    "field, value",
    [
        ("quantization_config", {"bits": 4}), ("quantization", {"bits": 4}),
        ("neftune_noise_alpha", 5.0), ("version", "2"),
        ("suppress_tokens", [3]), ("forced_bos_token_id", 1), ("prefix", "Hello: "),
        ("add_cross_attention", True), ("pruned_heads", {"0": [1]}),
        ("hidden_dropout", 0.1), ("is_causal", False), ("is_causal", None),
        ("auto_map", {"AutoConfig": "x.py"}), ("per_layer_config", {"0": {}}),
        ("attention_chunk_size", 8192), ("vision_config", {}), ("unheard_of", False),
        ("final_logit_softcapping", 30.0), ("embedding_multiplier", 12.0),
    ],
)  # fmt: skip
def test_a_field_that_means_something_is_refused_by_name(field, value):
    content = PUBLISHED["Llama-3.2-1B-Instruct"][0]
    with pytest.raises(BadInput, match=f"config.json(.|\n)*{field} = "):
        parse_config(content | {field: value}, "config.json")
