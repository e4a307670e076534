"""Every family against transformers, piece by piece, on random tiny models."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tpmm_jax as tpmm
from tpmm_jax.losses import log_probs
from tpmm_jax.models import NO_NOISE, Decoder, ExpertsConfig, RopeConfig, from_mask
from tpmm_jax.models.experts import Weights, by_layer
from tpmm_jax.models.families import FAMILIES, make_config
from tpmm_jax.models.feed_forward import FEED_FORWARD
from tpmm_jax.models.layers import (
    Attention,
    RMSNorm,
    inverse_wavelengths,
    per_layer,
)
from tpmm_jax.models.lora import get
from tpmm_jax.models.transformer import Block
from tpmm_jax.weights.hf_config import parse_config
from tpmm_jax.weights.names import names

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

T = 23


def tiny(family, **fields):
    sizes = {
        "vocab_size": 61, "width": 21, "mlp_width": 35, "num_layers": 4, "num_heads": 3,
        "num_kv_heads": 1, "head_dim": 10, "max_positions": 96, "bos_id": 2,
        "eos_ids": (1,), "pad_id": 0,
    }  # fmt: skip
    return make_config(family, **sizes | fields)


LINEAR = RopeConfig(theta=1e6, scaling="linear", factor=8.0)
LLAMA3 = RopeConfig(theta=5e5, scaling="llama3", factor=8.0, original_max_positions=16)
RANDOM = {
    "gemma": tiny("gemma", qkv_bias=True, output_bias=True),
    "gemma2": tiny(
        "gemma2", window=5, query_pre_attn_scalar=7, attention_softcap=2.0,
        final_softcap=5.0,
    ),
    "gemma2, uncapped": tiny(
        "gemma2", window=7, attention_softcap=None, final_softcap=None,
        windowed_layers=(False, True, True, False),
    ),
    "gemma3": tiny(
        "gemma3_text", num_layers=7, window=5, query_pre_attn_scalar=7, rope=LINEAR
    ),
    "gemma3, capped": tiny(
        "gemma3_text", window=3, windowed_layers=(True, False) * 2, final_softcap=5.0
    ),
    "llama 2": tiny("llama", num_kv_heads=3, norm_eps=1e-5),
    "llama 3": tiny("llama", rope=LLAMA3, tie_embeddings=True),
    "llama with biases": tiny(
        "llama", qkv_bias=True, output_bias=True, mlp_bias=True, rope=LINEAR
    ),
    "mistral": tiny("mistral", window=5),
    "mistral, no window": tiny("mistral", window=None),
    "mixtral": tiny("mixtral", experts=ExpertsConfig(count=4, top_k=2)),
    "qwen2": tiny("qwen2", tie_embeddings=True),
    "qwen2, windows": tiny(
        "qwen2", window=5, windowed_layers=(False, False, True, True)
    ),
    "qwen3": tiny("qwen3", rope=RopeConfig(theta=1e6)),
    "qwen3, windows and biases": tiny(
        "qwen3", window=5, windowed_layers=(False, True, True, True), qkv_bias=True,
        output_bias=True,
    ),
    "qwen3_moe": tiny(
        "qwen3_moe", experts=ExpertsConfig(count=5, top_k=3, renormalise=False)
    ),
    "qwen3_moe, gates that sum to 1": tiny(
        "qwen3_moe", experts=ExpertsConfig(count=5, top_k=3)
    ),
}  # fmt: skip


def randomised(params, seed=1):
    """Norms and biases away from where they start, so that a missing one shows."""
    key = jax.random.key(seed)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten(
        [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    )


@pytest.fixture(scope="module", params=RANDOM)
def pair(request, tmp_path_factory):
    """Our model and transformers' of the same weights, through save()."""
    config = RANDOM[request.param]
    decoder = Decoder(config)
    model = tpmm.Model(decoder, randomised(decoder.init(jax.random.key(0))))
    folder = tmp_path_factory.mktemp("saved") / "out"
    tpmm.save(model, folder, max_shard_bytes=20_000)
    hf, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys"))
    assert type(hf).__name__ == FAMILIES[config.family].architecture
    again = tpmm.load(folder)
    assert again.config == config
    same = jax.tree.map(np.array_equal, again.params, model.params)
    assert all(jax.tree.leaves(same))
    return model, hf.eval()


def near(ours, theirs, relative=1e-5):
    theirs = theirs.detach().numpy()
    scale = max(1.0, float(np.abs(theirs).max()))
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= relative * scale


def inputs(shape, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return jnp.asarray(x), torch.tensor(x)


def layer_params(model, layer):
    return jax.tree.map(lambda x: x[layer], model.params["layers"])


def told(model, layer):
    """What a layer is told, its experts included."""
    found, c = per_layer(model.config), model.config
    if c.experts is not None:
        found = by_layer(found, Weights(**model.params["experts"]), c)
    return jax.tree.map(lambda x: x[layer], found)


def rotary(hf, config, layer, x):
    """transformers' cosines and sines of a layer, for positions 0, 1, ..."""
    positions = torch.arange(T)[None]
    if config.family == "gemma3_text":
        return hf.model.rotary_emb(x, positions, hf.config.layer_types[layer])
    return hf.model.rotary_emb(x, positions)


def masks(config, layer):
    """Who may look where: transformers' additive one."""
    allowed = np.tril(np.ones((T, T), bool))
    if config.windowed_layers and config.windowed_layers[layer]:
        rows = np.arange(T)
        allowed &= rows[:, None] - rows < config.window
    additive = np.where(allowed, 0.0, np.finfo(np.float32).min).astype(np.float32)
    return torch.tensor(additive[None, None])


def test_norms(pair):
    model, hf = pair
    c = model.config
    x, x_hf = inputs((2, T, c.width))
    norm = RMSNorm(c.norm_eps, c.norm_offset)
    scale = model.params["final_norm"]
    near(norm.apply({"params": scale}, 30 * x), hf.model.norm(30 * x_hf))
    p = layer_params(model, 1)
    theirs = hf.model.layers[1]
    found = {"attention_norm": theirs.input_layernorm}
    if c.post_norms:
        found |= {
            "attention_post_norm": theirs.post_attention_layernorm,
            "mlp_norm": theirs.pre_feedforward_layernorm,
            "mlp_post_norm": theirs.post_feedforward_layernorm,
        }
    else:
        found["mlp_norm"] = theirs.post_attention_layernorm
    for name, module in found.items():
        near(norm.apply({"params": p[name]}, x), module(x_hf))


def test_rotary_angles(pair):
    model, hf = pair
    c = model.config
    for layer in range(c.num_layers):
        cos, sin = rotary(hf, c, layer, torch.zeros(1, T, c.width))
        angles = jnp.arange(T)[:, None] * told(model, layer).inverse_E
        both = jnp.concatenate([angles, angles], -1)[None]
        near(jnp.cos(both), cos)
        near(jnp.sin(both), sin)
    assert inverse_wavelengths(c.rope, c.head_dim).dtype == jnp.float32


def test_attention(pair):
    model, hf = pair
    c = model.config
    x, x_hf = inputs((2, T, c.width))
    ones = jnp.ones((1, T), jnp.int32)
    row = from_mask(ones, ones)
    for layer in range(c.num_layers):
        ours, _ = Attention(c, jnp.float32, None, False).apply(
            {"params": layer_params(model, layer)["attention"]},
            x, row, row, None, None, told(model, layer),
        )  # fmt: skip
        theirs = hf.model.layers[layer].self_attn(
            hidden_states=x_hf,
            position_embeddings=rotary(hf, c, layer, x_hf),
            attention_mask=masks(c, layer),
        )[0]
        near(ours, theirs)


def test_mlp(pair):
    model, hf = pair
    x, x_hf = inputs((2, T, model.config.width))
    params = {"params": layer_params(model, 2).get("mlp", {})}
    kind = FEED_FORWARD[model.config.feed_forward](model.config, jnp.float32, None)
    real = jnp.ones(x.shape[:2], bool)
    ours = kind.apply(params, x, real, told(model, 2), None)[0]
    near(ours, hf.model.layers[2].mlp(x_hf))


def test_layer_by_layer(pair):
    """The hidden states after each layer, from the embedding on."""
    model, hf = pair
    c = model.config
    tokens = np.random.default_rng(1).integers(3, 61, (2, T))
    with torch.no_grad():
        theirs = hf(input_ids=torch.tensor(tokens), output_hidden_states=True)
    x = model.params["embedding"][jnp.asarray(tokens)]
    x = x * jnp.float32(c.width**0.5) if c.embed_scale else x
    near(x, theirs.hidden_states[0])
    row = from_mask(jnp.asarray(tokens[:1]), jnp.ones((1, T), jnp.int32))
    for layer in range(c.num_layers):
        (x, _), _ = Block(c, jnp.float32, None, NO_NOISE, False).apply(
            {"params": layer_params(model, layer)},
            (x, None), told(model, layer), row, row, None, None,
        )  # fmt: skip
        if layer < c.num_layers - 1:
            near(x, theirs.hidden_states[layer + 1])
    norm = RMSNorm(c.norm_eps, c.norm_offset)
    x = norm.apply({"params": model.params["final_norm"]}, x)
    # transformers' last entry is normalised.
    near(x, theirs.hidden_states[-1])


def padded(left, seed=2):
    rng = np.random.default_rng(seed)
    tokens, mask = rng.integers(3, 61, (4, T)), np.zeros((4, T), np.int64)
    for row, n in enumerate((T, 17, 9, 1)):
        mask[row, T - n if left else 0 : T if left else n] = 1
    return tokens, mask


@pytest.mark.parametrize("left", [False, True])
def test_logits_and_log_probs(pair, left):
    model, hf = pair
    tokens, mask = padded(left)
    with torch.no_grad():
        theirs = hf(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask)
        ).logits.numpy()
    ours, real = np.asarray(tpmm.logits(model, tokens, mask)), mask > 0
    scale = max(1.0, float(np.abs(theirs[real]).max()))
    assert np.abs(ours - theirs)[real].max() <= 1e-5 * scale
    wanted = torch.log_softmax(torch.tensor(theirs).double(), -1).numpy()[:, :-1]
    wanted = np.take_along_axis(wanted, tokens[:, 1:, None], -1)[..., 0]
    inside = real[:, 1:] & real[:, :-1]
    found = np.asarray(tpmm.log_probs(model, tokens, mask))
    assert np.abs(found - wanted)[inside].max() <= 1e-5 * scale


def test_gradients(pair):
    """Of the summed log-probs of padded rows, in each parameter."""
    model, hf = pair
    tokens, mask = padded(left=False)
    ours = jax.grad(
        lambda p: log_probs(
            model.decoder, p, from_mask(jnp.asarray(tokens), jnp.asarray(mask))
        ).sum()
    )(model.params)
    ids, real = torch.tensor(tokens), torch.tensor(mask)
    hf.zero_grad()
    logits = hf(input_ids=ids, attention_mask=real).logits
    logp = torch.log_softmax(logits, -1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    (logp * real[:, 1:] * real[:, :-1]).sum().backward()
    theirs = dict(hf.named_parameters())
    for name in names(model.config):
        leaf = get(ours, name.path)
        for index, tensor in name.tensors(model.config):
            value = name.to_theirs(np.asarray(leaf[index]))
            near(value, gradient_of(theirs, tensor), 3e-5)


EXPERT = re.compile(r"(.+)\.\w+\.experts\.(\d+)\.(\w+)\.weight")


def gradient_of(theirs, tensor):
    """A tensor's gradient; transformers holds the experts of a layer in two tensors."""
    match = EXPERT.fullmatch(tensor)
    if match is None:
        return theirs[tensor.replace("block_sparse_moe.", "mlp.")].grad
    layer, number, name = match.groups()
    if name in ("w2", "down_proj"):
        return theirs[f"{layer}.mlp.experts.down_proj"].grad[int(number)]
    both = theirs[f"{layer}.mlp.experts.gate_up_proj"].grad[int(number)]
    return both.chunk(2)[name in ("w3", "up_proj")]


def test_greedy_decoding(pair):
    """Left-padded prompts, and more tokens than any window."""
    model, hf = pair
    rng = np.random.default_rng(5)
    prompts = [rng.integers(3, 61, n).tolist() for n in (9, 5, 2)]
    tokens, mask = np.zeros((3, 9), np.int64), np.zeros((3, 9), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, 9 - len(prompt) :], mask[row, 9 - len(prompt) :] = prompt, 1
    theirs = hf.generate(
        torch.tensor(tokens), attention_mask=torch.tensor(mask), max_new_tokens=24,
        do_sample=False, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    ours = tpmm.generate(model, prompts, max_new_tokens=24, temperature=0.0)
    compared = 0
    for row, (ids,) in enumerate(ours):
        for step, token in enumerate(ids):
            top = theirs.logits[step][row].float().topk(2).values
            if float(top[0] - top[1]) < 1e-3:
                break
            assert token == int(theirs.sequences[row, 9 + step])
            compared += 1
    # Rows end early at a near-tie or the end token.
    assert compared > 12


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_fields_are_transformers_defaults(family):
    """A config.json of only the sizes, and the one of all that transformers adds."""
    sizes = {
        "model_type": family, "hidden_size": 64, "intermediate_size": 8,
        "num_attention_heads": 32, "num_hidden_layers": 31, "vocab_size": 9,
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(**sizes)
    whole = config.to_dict()
    whole.pop("transformers_version", None)
    short = parse_config(sizes, "short")
    assert parse_config(whole, "whole") == short
    fields = {f.name for f in dataclasses.fields(short)}
    assert {"window", "rope", "head_dim"} <= fields
    found = config.layer_types if hasattr(config, "layer_types") else None
    if found is not None:
        wanted = short.windowed_layers or (False,) * 31
        assert [x == "sliding_attention" for x in found] == list(wanted)


def test_the_text_part_of_an_image_model_is_saved_as_the_message_says(tmp_path):
    from transformers import (
        Gemma3Config,
        Gemma3ForCausalLM,
        Gemma3ForConditionalGeneration,
    )

    text_sizes = {
        "vocab_size": 61, "hidden_size": 20, "intermediate_size": 35,
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 10, "sliding_window": 5, "max_position_embeddings": 96,
    }  # fmt: skip
    vision_sizes = {
        "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(
        text_config=text_sizes, vision_config=vision_sizes, mm_tokens_per_image=4,
        image_token_index=60,
    )  # fmt: skip
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "whole")
    with pytest.raises(tpmm.errors.BadInput, match="Gemma3ForCausalLM"):
        tpmm.load(tmp_path / "whole")
    whole = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "whole")
    text = Gemma3ForCausalLM(whole.config.text_config)
    text.model = whole.model.language_model
    text.tie_weights()
    text.save_pretrained(tmp_path / "text")
    model = tpmm.load(tmp_path / "text")
    tokens = np.random.default_rng(1).integers(3, 60, (2, T))
    with torch.no_grad():
        theirs = whole.eval()(input_ids=torch.tensor(tokens)).logits
    near(tpmm.logits(model, tokens, np.ones_like(tokens)), theirs)
