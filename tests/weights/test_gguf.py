"""GGUFFile gives back what a converter put into a .gguf file, and refuses the rest."""

import json
import struct
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from tpmm_jax.errors import BadInput
from tpmm_jax.weights.gguf import GGUFFile, unpermute
from tpmm_jax.weights.gguf_config import LLAMA3_ROPE, llama3_scaling
from tpmm_jax.weights.hf_config import parse_config
from tpmm_jax.weights.huggingface import check_tensors

gguf = pytest.importorskip("gguf")
F32, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "model.layers.": "blk.",
}
# Where there are norms after attention and MLP, one more of them changes its name.
POST_NORM_NAMES = {
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "post_attention_layernorm": "post_attention_norm",
}
ARCHITECTURES = {"gemma3_text": "gemma3", "mistral": "llama"}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 11,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": None,
}


def permute(rows, num_heads):
    """The converter's reordering: halves of a head become alternating rows."""
    head_dim = len(rows) // num_heads
    order = [
        head * head_dim + half * head_dim // 2 + pair
        for head in range(num_heads)
        for pair in range(head_dim // 2)
        for half in range(2)
    ]
    return rows[order]


def to_gguf_name(name, arch):
    post = POST_NORM_NAMES if arch in ("gemma2", "gemma3") else {}
    for theirs, stored in (NAMES | post).items():
        name = name.replace(theirs, stored)
    return name


def write(path, config, tensors, *, kind=F32, fields=(), extra=()):
    """Writes a .gguf file as llama.cpp's converter would."""
    arch = ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or config
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if config.get("sliding_window") and arch != "qwen2":
        writer.add_sliding_window(config["sliding_window"])
    for name, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if config.get(name) is not None:
            add(config[name])
    for name, add in (
        ("bos_token_id", writer.add_bos_token_id),
        ("eos_token_id", writer.add_eos_token_id),
        ("pad_token_id", writer.add_pad_token_id),
    ):
        if config.get(name) is not None:
            add(config[name])
    for key, value in dict(fields).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        add = add | {list: writer.add_array, float: writer.add_float32}
        writer.kv_data[0].pop(key, None)
        add[type(value)](key, value)
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    for name, tensor in tensors.items():
        if arch == "llama" and name.split(".")[-2] in heads:
            tensor = permute(tensor, heads[name.split(".")[-2]])
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + np.float32(1)
        used = F32 if tensor.ndim == 1 else kind
        stored = gguf.quantize(tensor, used)
        writer.add_tensor(to_gguf_name(name, arch), stored, raw_dtype=used)
    for name, tensor in dict(extra).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_tensors(config, seed=0):
    rng = np.random.default_rng(seed)
    width, mlp = config["hidden_size"], config["intermediate_size"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    query = config["num_attention_heads"] * config["head_dim"]
    layer = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (query, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, query),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (mlp, width),
        "mlp.up_proj": (mlp, width),
        "mlp.down_proj": (width, mlp),
    }
    shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    for index in range(config["num_hidden_layers"]):
        for name, shape in layer.items():
            shapes[f"model.layers.{index}.{name}.weight"] = shape
    return {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()}


@pytest.fixture
def tensors():
    return random_tensors(CONFIG)


@pytest.mark.parametrize(
    "family",
    [
        "gemma", "gemma2", "gemma3", "llama", "llama2", "llama_bias", "mistral",
        "qwen2", "qwen3",
    ],
)  # fmt: skip
def test_a_converted_model_comes_back_as_it_was(family, fixtures, tmp_path):
    folder = fixtures / family
    config = json.loads((folder / "config.json").read_text())
    if family == "llama":
        # This fixture's Llama 3 scaling is none that a .gguf file could tell.
        config["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": config["rope_parameters"]["rope_theta"],
        }
    # Nor do the files tell these; what follows from the sizes is assumed.
    if "query_pre_attn_scalar" in config:
        config["query_pre_attn_scalar"] = config["head_dim"]
    if family == "qwen2":
        config |= {"use_sliding_window": False, "layer_types": None}
    wanted = load_file(folder / "model.safetensors")
    file = GGUFFile(write(tmp_path / "m.gguf", config, wanted))
    assert set(file.names()) == set(wanted)
    for name, tensor in wanted.items():
        got = file.tensor(name)
        assert got.dtype == np.float32 and type(got) is np.ndarray
        # 1 + w rounds to float32.
        slack = 2e-7 if "gemma" in family and name.endswith("norm.weight") else 0
        np.testing.assert_allclose(got, tensor, rtol=slack, atol=slack)
    assert parse_config(file.config, "m.gguf") == parse_config(config, "config.json")


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q8_0"])
def test_quantised_rows_are_dequantised_and_put_in_order(kind, tensors, tmp_path):
    kind = gguf.GGMLQuantizationType[kind]
    file = GGUFFile(write(tmp_path / "m.gguf", CONFIG, tensors, kind=kind))
    for name, tensor in tensors.items():
        used = F32 if tensor.ndim == 1 else kind
        # Rows are quantised one by one, so their order does not matter here.
        wanted = gguf.dequantize(gguf.quantize(tensor, used), used)
        np.testing.assert_array_equal(file.tensor(name), wanted)
        for start, stop in (
            (0, 1),
            (1, len(tensor) - 3),
            (len(tensor) - 1, len(tensor)),
        ):
            found = file.rows(name, start, stop)
            np.testing.assert_array_equal(found, wanted[start:stop])


def test_the_widest_gemmas_scale_scores_by_width_over_heads(tmp_path):
    """46 layers of Gemma 2 and 62 of Gemma 3 are the 27B models."""
    for kind, layers in (("gemma2", 46), ("gemma3_text", 62)):
        config = CONFIG | {"model_type": kind, "num_hidden_layers": layers}
        some = {"model.embed_tokens.weight": np.ones((11, 32), np.float32)}
        for number, wanted in ((layers, 32 // 4), (layers - 1, 8 * 2)):
            given = config | {"num_hidden_layers": number, "head_dim": 16}
            file = GGUFFile(write(tmp_path / f"{kind}{number}.gguf", given, some))
            assert file.config["query_pre_attn_scalar"] == wanted


def test_gemma_3s_layers_are_told_apart_by_any_spelling(tensors, tmp_path):
    config = CONFIG | {"model_type": "gemma3_text", "num_hidden_layers": 7}
    some = {"model.embed_tokens.weight": np.ones((11, 32), np.float32)}
    window = {"gemma3.attention.sliding_window": 5}
    pattern = "gemma3.attention.sliding_window_pattern"
    cases = [
        ({}, None, ()),
        ({"gemma3.attention.sliding_window": 0}, None, ()),
        (window, 5, (True,) * 5 + (False, True)),
        (window | {pattern: 2}, 5, (True, False) * 3 + (True,)),
        (window | {pattern: [False] * 6 + [True]}, 5, (False,) * 6 + (True,)),
    ]
    for number, (fields, length, windowed) in enumerate(cases):
        path = write(tmp_path / f"{number}.gguf", config, some, fields=fields)
        found = parse_config(GGUFFile(path).config, "m.gguf")
        assert (found.window, found.windowed_layers) == (length, windowed)
        assert found.local_rope.theta == 1e4
    fields = window | {"gemma3.rope.freq_base_swa": 5e3}
    path = write(tmp_path / "m.gguf", config, some, fields=fields)
    assert parse_config(GGUFFile(path).config, "m.gguf").local_rope.theta == 5e3


def test_unpermute_undoes_the_converters_order():
    rows = np.arange(3 * 10 * 2, dtype=np.float32).reshape(30, 2)
    np.testing.assert_array_equal(unpermute(permute(rows, 3), 3), rows)
    assert permute(np.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_config_is_that_of_a_config_json(tensors, tmp_path):
    file = GGUFFile(write(tmp_path / "m.gguf", CONFIG, tensors, kind=Q8_0))
    assert file.config == CONFIG


@pytest.mark.parametrize(
    "fields, wanted",
    [
        ({}, 1),
        ({"eot_token_id": 4, "eom_token_id": 5}, [1, 4, 5]),
        ({"eot_token_id": 1}, 1),
        ({"tokens": ["a", "b", "<bos>", "<end_of_turn>"]}, [1, 3]),
        ({"tokens": ["<end_of_turn>", "<|im_end|>"], "eot_token_id": 6}, [1, 6]),
        ({"tokens": ["<|endoftext|>", "<|im_end|>"]}, 1),
    ],
)
def test_answers_end_at_the_end_of_a_turn(fields, wanted, tensors, tmp_path):
    fields = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    file = GGUFFile(write(tmp_path / "m.gguf", CONFIG, tensors, fields=fields))
    assert file.config["eos_token_id"] == wanted


def test_an_output_tensor_unties_the_embeddings(tensors, tmp_path):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    file = GGUFFile(write(tmp_path / "m.gguf", CONFIG, tensors))
    assert file.config["tie_word_embeddings"] is False
    np.testing.assert_array_equal(
        file.tensor("lm_head.weight"), tensors["lm_head.weight"]
    )


def test_linear_rope_scaling_is_reported(tensors, tmp_path):
    fields = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    file = GGUFFile(write(tmp_path / "m.gguf", CONFIG, tensors, fields=fields))
    assert file.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_a_factor_without_a_type_is_linear(tensors, tmp_path):
    fields = {"llama.rope.scaling.factor": 4.0}
    file = GGUFFile(write(tmp_path / "m.gguf", CONFIG, tensors, fields=fields))
    assert file.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def published_divisors(factor, theta, head_dim):
    """Llama 3's rule, one frequency at a time."""
    divisors = []
    for i in range(0, head_dim, 2):
        wave = 2 * np.pi * theta ** (i / head_dim)
        smooth = (8192 / wave - 1) / (4 - 1)
        if wave < 8192 / 4:
            divisors.append(1.0)
        elif wave > 8192 / 1:
            divisors.append(factor)
        else:
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_read_from_the_divisors(factor, head_dim):
    divisors = published_divisors(factor, 5e5, head_dim)
    scaling = llama3_scaling(divisors, 5e5, head_dim, "m.gguf")
    assert scaling == {"rope_type": "llama3", "factor": factor, **LLAMA3_ROPE}


def test_llama3_divisors_are_no_tensor_of_the_model(tmp_path):
    config = CONFIG | {"head_dim": 64}
    divisors = {"rope_freqs.weight": published_divisors(32.0, 5e5, 64)}
    path = write(tmp_path / "m.gguf", config, random_tensors(config), extra=divisors)
    file = GGUFFile(path)
    assert file.config["rope_scaling"]["factor"] == 32.0
    assert not any("rope" in name for name in file.names())


@pytest.mark.parametrize("wrong", [np.full(32, 8.0), np.linspace(1, 9, 32)])
def test_other_divisors_are_refused(wrong):
    with pytest.raises(BadInput, match="rope_freqs"):
        llama3_scaling(wrong.astype(np.float32), 5e5, 64, "m.gguf")
    assert llama3_scaling(np.ones(32, np.float32), 5e5, 64, "m.gguf") is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"general.architecture": "falcon"}, "'falcon'.*gemma3, llama, qwen2"),
        ({"general.type": "adapter"}, "general.type is 'adapter'"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"llama.attention.logit_softcapping": 5.0}, "logit_softcapping = 5.0"),
        ({"llama.expert_count": 8}, "expert_count = 8"),
        ({"llama.attention.head_count_kv": [1, 2]}, "head_count_kv is .1, 2."),
        ({"llama.rope.dimension_count": 4}, "of which 4 rotate"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.block_count": 10**9}, "block_count is 1000000000; .* to 2,000"),
        ({"llama.context_length": 2**31}, "context_length is 2147483648"),
    ],
)
def test_what_is_not_understood_is_refused(fields, message, tensors, tmp_path):
    path = write(tmp_path / "m.gguf", CONFIG, tensors, fields=fields)
    with pytest.raises(BadInput, match=message):
        GGUFFile(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"llama.block_count": 900}, "lacks .* for a llama model of 900 layers"),
        ({"llama.embedding_length": 2**18}, r"embed_tokens.weight has shape \(11, 32"),
        ({"llama.feed_forward_length": 2**21}, "gate_proj.weight has shape"),
        ({"llama.attention.head_count": 2**14}, "q_proj.weight has shape"),
    ],
)
def test_sizes_are_held_against_the_tensors_first(fields, message, tensors, tmp_path):
    path = write(tmp_path / "m.gguf", CONFIG, tensors, fields=fields)
    file = GGUFFile(path)
    with pytest.raises(BadInput, match=f"m.gguf.*{message}"):
        check_tensors(file, parse_config(file.config, str(path)))


@pytest.mark.parametrize("length", [0, 2**20, 2**40])
def test_damaged_counts_and_nested_arrays_are_refused(length, tensors, tmp_path):
    path = tmp_path / "m.gguf"
    array = struct.pack("<IQ", 9, max(1, length)) * (10**4 if length == 0 else 1)
    field = struct.pack("<Q", 1) + b"x" + struct.pack("<I", 9) + array
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, length, 1) + field)
    with pytest.raises(BadInput, match="damaged"):
        GGUFFile(path)


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_gate_exps.weight", "blk.1.attn_q.weight", "blk.0.attn_q_norm"]
)
def test_unknown_tensors_are_refused_by_name(name, tensors, tmp_path):
    extra = {name: np.ones(4, np.float32)}
    path = write(tmp_path / "m.gguf", CONFIG, tensors, extra=extra)
    with pytest.raises(BadInput, match=name):
        GGUFFile(path)


def test_a_wrong_name_is_answered_with_near_ones(tensors, tmp_path):
    file = GGUFFile(write(tmp_path / "m.gguf", CONFIG, tensors))
    with pytest.raises(BadInput, match=r"near it: model\.norm\.weight"):
        file.tensor("model.norm.weights")


def test_files_that_are_no_gguf_are_refused(tensors, tmp_path):
    with pytest.raises(BadInput, match="not a file"):
        GGUFFile(tmp_path / "none.gguf")
    text = tmp_path / "text.gguf"
    text.write_text("{}")
    with pytest.raises(BadInput, match="does not start with GGUF"):
        GGUFFile(text)
    whole = write(tmp_path / "m.gguf", CONFIG, tensors).read_bytes()
    for length in (4, 40, 300, len(whole) // 2, len(whole) - 4):
        text.write_bytes(whole[:length])
        with pytest.raises(BadInput, match="damaged"):
            GGUFFile(text)


def test_without_the_gguf_package_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BadInput, match=r"pip install \"tpmm_jax\[gguf\]\""):
        GGUFFile(tmp_path / "m.gguf")
