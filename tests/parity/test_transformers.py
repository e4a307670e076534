"""What save writes, transformers runs to the same logits."""

import jax
import numpy as np
import pytest

import tpmm_jax as tpmm
from tpmm_jax.models import Decoder, RopeConfig
from tpmm_jax.models.families import make_config

pytestmark = pytest.mark.parity


@pytest.fixture
def torch():
    """torch and transformers, of the parity extra."""
    return pytest.importorskip("torch")


def transformers_logits(torch, folder, tokens, mask, dtype="float32"):
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys"))
    model.eval()
    with torch.no_grad():
        out = model(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask))
    return out.logits.float().numpy(), model


def batch(vocab, T=40):
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, vocab, (3, T))
    mask = (np.arange(T) < np.asarray([T, 17, 1])[:, None]).astype(np.int64)
    return tokens, mask


def tied(family):
    return make_config(
        family, vocab_size=61, width=24, mlp_width=34, num_layers=3, num_heads=4,
        num_kv_heads=2, head_dim=8, max_positions=96, bos_id=2, eos_ids=(1, 5),
        pad_id=0, tie_embeddings=True,
    )  # fmt: skip


RANDOM = {
    "gemma": tied("gemma"),
    "llama tied": tied("llama"),
    "qwen3 tied": tied("qwen3"),
    "llama scaled rope": make_config(
        "llama", vocab_size=61, width=24, mlp_width=34, num_layers=2, num_heads=3,
        num_kv_heads=1, head_dim=10, max_positions=96,
        rope=RopeConfig(
            theta=5e5, scaling="llama3", factor=4.0, original_max_positions=16
        ),
    ),
    "llama of one head each": make_config(
        "llama", vocab_size=61, width=24, mlp_width=34, num_layers=2, num_heads=3,
        num_kv_heads=3, max_positions=96,
    ),
}  # fmt: skip


def check(torch, model, folder):
    tpmm.save(model, folder)
    tokens, mask = batch(model.config.vocab_size)
    ours = np.asarray(tpmm.logits(model, tokens, mask))
    theirs, hf = transformers_logits(torch, folder, tokens, mask)
    real = mask > 0
    # Relative above 1: Gemma's logits reach 16.
    scale = max(1.0, float(np.abs(theirs[real]).max()))
    assert np.abs(ours - theirs)[real].max() <= 1e-5 * scale
    return hf


@pytest.mark.parametrize("family", ["gemma", "llama", "qwen3"])
def test_fixtures_saved_anew(torch, fixtures, tmp_path, family):
    check(torch, tpmm.load(fixtures / family), tmp_path / "out")


@pytest.mark.parametrize("name", RANDOM)
def test_random_models(torch, tmp_path, name):
    decoder = Decoder(RANDOM[name])
    params = decoder.init(jax.random.key(0))
    # Norms away from where they start, so that a missing offset shows.
    key = jax.random.key(1)
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.fold_in(key, x.size), x.shape),
        params,
    )
    hf = check(torch, tpmm.Model(decoder, params), tmp_path / "out")
    config = RANDOM[name]
    found = hf.generation_config.eos_token_id
    found = found if isinstance(found, list) or found is None else [found]
    assert (found or []) == list(config.eos_ids)


@pytest.mark.parametrize("name", ["gemma", "llama tied"])
def test_greedy_generation(torch, tmp_path, name):
    """Tokens agree up to the first near-tie."""
    decoder = Decoder(RANDOM[name])
    model = tpmm.Model(decoder, decoder.init(jax.random.key(2)))
    tpmm.save(model, tmp_path / "out")
    prompts = [[7, 8, 9], [10, 11, 12]]
    ours = tpmm.generate(model, prompts, max_new_tokens=24, temperature=0.0)
    tokens = np.asarray(prompts)
    _, hf = transformers_logits(torch, tmp_path / "out", tokens, np.ones_like(tokens))
    theirs = hf.generate(
        torch.tensor(tokens),
        max_new_tokens=24,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    for row, (ids,) in enumerate(ours):
        for step, token in enumerate(ids):
            top = theirs.logits[step][row].float().topk(2).values
            if float(top[0] - top[1]) < 1e-3:
                break
            assert token == int(theirs.sequences[row, 3 + step])


def test_bfloat16_is_loaded_as_bfloat16(torch, fixtures, tmp_path):
    model = tpmm.load(fixtures / "llama", dtype="bfloat16")
    tpmm.save(model, tmp_path / "out")
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert hf.dtype == torch.bfloat16
    ours = np.asarray(model.params["embedding"].astype("float32"))
    theirs = hf.model.embed_tokens.weight.detach().float().numpy()
    np.testing.assert_array_equal(ours, theirs)


def test_what_transformers_writes_is_read(torch, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=24, intermediate_size=34, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "out", max_shard_size="8KB")
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    tokens, mask = batch(61)
    theirs, _ = transformers_logits(torch, tmp_path / "out", tokens, mask)
    ours = np.asarray(tpmm.logits(tpmm.load(tmp_path / "out"), tokens, mask))
    assert np.abs(ours - theirs)[mask > 0].max() <= 1e-5
