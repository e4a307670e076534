"""config.json in every spelling of windows, ropes and biases; the rest is refused."""

import json

import pytest

from tpmm_jax.errors import BadInput
from tpmm_jax.models import RopeConfig
from tpmm_jax.models.families import FAMILIES, make_config
from tpmm_jax.weights.hf_config import parse_config, write_config

SIZES = {
    "hidden_size": 24, "intermediate_size": 8, "num_attention_heads": 4,
    "num_hidden_layers": 7, "vocab_size": 9, "num_key_value_heads": 2, "head_dim": 6,
}  # fmt: skip
FULL, SLIDING = "full_attention", "sliding_attention"
LINEAR = {"rope_type": "linear", "factor": 8.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip


def parse(family, **fields):
    return parse_config(SIZES | {"model_type": family} | fields, "config.json")


@pytest.mark.parametrize(
    "family, fields, window, windowed",
    [
        ("gemma2", {"sliding_window": 5}, 5, "1010101"),
        ("gemma2", {"sliding_window": 5, "sliding_window_size": 5}, 5, "1010101"),
        ("gemma3_text", {"sliding_window": 5}, 5, "1111101"),
        ("gemma3_text", {"sliding_window_pattern": 3}, 4096, "1101101"),
        ("gemma3_text", {"sliding_window_pattern": 1}, None, ""),
        (
            "gemma3_text",
            {"layer_types": [FULL] * 6 + [SLIDING], "_sliding_window_pattern": 6},
            4096,
            "0000001",
        ),
        ("mistral", {"sliding_window": None}, None, ""),
        ("mistral", {"layer_types": [SLIDING] * 7}, 4096, "1111111"),
        ("qwen2", {"sliding_window": 5}, None, ""),
        ("qwen2", {"sliding_window": 5, "use_sliding_window": True}, None, ""),
        (
            "qwen3",
            {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 4},
            5,
            "0000111",
        ),
        (
            "qwen2",
            {
                "sliding_window": 5,
                "use_sliding_window": True,
                "layer_types": [SLIDING] + [FULL] * 6,
            },
            5,
            "1000000",
        ),
        ("llama", {"sliding_window": 5, "use_sliding_window": False}, None, ""),
        ("llama", {"layer_types": [FULL] * 7}, None, ""),
    ],
)
def test_windows(family, fields, window, windowed):
    config = parse(family, **fields)
    assert config.window == window
    assert config.windowed_layers == tuple(x == "1" for x in windowed)
    again = json.loads(json.dumps(write_config(config, "float32")))
    assert parse_config(again, "config.json") == config


@pytest.mark.parametrize(
    "family, fields, rope, local",
    [
        ("gemma3_text", {}, RopeConfig(theta=1e6), RopeConfig(theta=1e4)),
        (
            "gemma3_text",
            {"rope_theta": 5e5, "rope_local_base_freq": 7e3, "rope_scaling": LINEAR},
            RopeConfig(theta=5e5, scaling="linear", factor=8.0),
            RopeConfig(theta=7e3),
        ),
        (
            "gemma3_text",
            {"rope_parameters": {FULL: LINEAR, SLIDING: {"rope_theta": 7e3}}},
            RopeConfig(theta=1e6, scaling="linear", factor=8.0),
            RopeConfig(theta=7e3),
        ),
        (
            "gemma2",
            {"rope_scaling": {"type": "linear", "factor": 8.0}, "rope_theta": 3e3},
            RopeConfig(theta=3e3, scaling="linear", factor=8.0),
            None,
        ),
        (
            "llama",
            {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}, "rope_scaling": LLAMA3},
            RopeConfig(
                theta=5e5, scaling="llama3", factor=8.0, original_max_positions=32
            ),
            None,
        ),
    ],
)
def test_ropes(family, fields, rope, local):
    config = parse(family, **fields)
    assert (config.rope, config.local_rope) == (rope, local)
    again = json.loads(json.dumps(write_config(config, "float32")))
    assert parse_config(again, "config.json") == config


def test_linear_scaling_may_name_the_length_before_it():
    scaling = LINEAR | {"original_max_position_embeddings": 32}
    assert parse("llama", rope_scaling=scaling) == parse("llama", rope_scaling=LINEAR)


def test_llama3_scaling_without_its_length_takes_max_position_embeddings():
    short = {k: x for k, x in LLAMA3.items() if not k.startswith("original")}
    rope = parse("llama", rope_scaling=short, max_position_embeddings=77).rope
    assert rope.original_max_positions == 77


@pytest.mark.parametrize(
    "family, fields, wanted",
    [
        ("llama", {"sliding_window": 5}, "sliding_window = 5"),
        ("llama", {"layer_types": [SLIDING] * 7}, "layer_types"),
        ("llama", {"query_pre_attn_scalar": 6}, "query_pre_attn_scalar"),
        ("llama", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping"),
        ("llama", {"rope_local_base_freq": 1e4}, "rope_local_base_freq"),
        ("llama", {"rope_scaling": LLAMA3, "rope_parameters": LINEAR}, "differ"),
        ("llama", {"rope_parameters": {FULL: LINEAR, SLIDING: LINEAR}}, "rope of type"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ("llama", {"rope_scaling": LINEAR | {"factor": -1}}, "numbers > 0"),
        ("llama", {"rope_scaling": LINEAR | {"beta": 1}}, "beta"),
        ("mistral", {"sliding_window": 0}, "sliding_window = 0"),
        ("mistral", {"layer_types": [SLIDING, FULL] * 3 + [FULL]}, "all are alike"),
        ("mistral", {"attention_bias": True}, "attention_bias"),
        ("mistral", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen2", {"use_mrope": True}, "use_mrope"),
        ("qwen2", {"use_sliding_window": "no"}, "use_sliding_window = 'no'"),
        ("qwen2", {"max_window_layers": -1}, "max_window_layers"),
        ("qwen2", {"dual_chunk_attention_config": {}}, "dual_chunk_attention_config"),
        ("qwen3", {"layer_types": [SLIDING] + [FULL] * 6}, "sliding_window is null"),
        ("llama", {"rope_scaling": LLAMA3 | {"low_freq_factor": 4}}, "low_freq_factor"),
        ("gemma2", {"sliding_window": None}, "sliding_window is null"),
        ("gemma2", {"sliding_window_size": 7}, "sliding_window_size"),
        ("gemma2", {"layer_types": [FULL] * 3}, "layer_types"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 7}, "chunked_attention"),
        ("gemma2", {"final_logit_softcapping": 0}, "final_logit_softcapping"),
        ("gemma2", {"query_pre_attn_scalar": "6"}, "query_pre_attn_scalar"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional"),
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"_sliding_window_pattern": 3}, "_sliding_window_pattern"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 1e4}}, "one object each"),
        ("gemma3_text", {"rope_local_base_freq": "x"}, "rope of sliding_attention"),
        ("gemma3_text", {"vision_config": {}}, "vision_config"),
        ("qwen2", {"num_key_value_heads": None, "head_dim": None}, None),
    ],
)
def test_what_a_family_does_not_compute_is_refused(family, fields, wanted):
    if wanted is None:
        assert parse(family, **fields).num_kv_heads == 4
        return
    with pytest.raises(BadInput, match=wanted):
        parse(family, **fields)


def test_a_model_of_images_is_refused_with_what_to_do():
    with pytest.raises(BadInput, match="language_model"):
        parse_config({"model_type": "gemma3", "text_config": {}}, "config.json")


def test_an_absent_number_of_key_heads_is_transformers_default():
    fields = {k: x for k, x in SIZES.items() if k != "num_key_value_heads"}
    wide = fields | {"num_attention_heads": 32, "model_type": "mistral"}
    assert parse_config(wide, "config.json").num_kv_heads == 8
    with pytest.raises(BadInput, match="= 8, the default"):
        parse_config(fields | {"model_type": "mistral"}, "config.json")


@pytest.mark.parametrize("family", FAMILIES)
def test_biases_are_written_where_the_family_has_them(family):
    fields = FAMILIES[family].fields
    config = make_config(
        family, vocab_size=9, width=24, mlp_width=8, num_layers=3, num_heads=4,
        num_kv_heads=2, head_dim=6,
        **({"qkv_bias": True, "output_bias": True} if "attention_bias" in fields
           else {}),
        **({"mlp_bias": True} if "mlp_bias" in fields else {}),
    )  # fmt: skip
    hf = write_config(config, "float32")
    assert parse_config(hf, "config.json") == config
    assert hf.get("attention_bias", False) == ("attention_bias" in fields)
