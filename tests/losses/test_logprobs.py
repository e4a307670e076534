"""Chunked log-probabilities: value, gradient, memory."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.losses import log_probs, logprobs
from tpmm_jax.losses.logprobs import chunked_log_probs
from tpmm_jax.models import Decoder, from_mask
from tpmm_jax.models.families import make_config

B, T, D, V = 3, 7, 5, 31
# Widths of a vocabulary block: 1, divisors, none, the whole vocabulary.
WIDTHS = (1, 2, 7, 16, 30, 31, 40)

CONFIG = make_config(
    "llama", vocab_size=V, width=D, mlp_width=11, num_layers=2, num_heads=3,
    num_kv_heads=1, head_dim=4, max_positions=64,
)  # fmt: skip


def decoder(softcap=None, dtype="float32", **how):
    config = dataclasses.replace(CONFIG, final_softcap=softcap)
    return Decoder(config, compute_dtype=dtype, **how)


def arrays(T=T, scale=3.0):
    rng = np.random.default_rng(11)
    hidden = jnp.asarray(rng.normal(0, scale, (B, T, D)), jnp.float32)
    head = jnp.asarray(rng.normal(0, 1, (V, D)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    upstream = jnp.asarray(rng.normal(0, 1, (B, T)), jnp.float32)
    return hidden, head, targets, upstream


def plain(hidden, head, targets, softcap):
    """The same from whole logits, by jax.nn.log_softmax."""
    logits = jnp.einsum("BTD,VD->BTV", hidden, head, precision="highest")
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    logp = jax.nn.log_softmax(logits, axis=-1)
    return jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Lets a block be narrower than is sensible outside tests."""
    monkeypatch.setattr(logprobs, "MIN_BLOCK", 1)


def chunked(softcap, width, dtype="float32"):
    """The function under test with ``width`` tokens of the vocabulary at a time."""

    def run(hidden, head, targets):
        return chunked_log_probs(
            hidden,
            head,
            targets,
            decoder=decoder(softcap, dtype, chunk_bytes=4 * B * T * width),
        )[0]

    return run


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("width", WIDTHS)
def test_value_and_gradient_for_every_width(width, softcap):
    hidden, head, targets, upstream = arrays()

    def both(function):
        value, pull = jax.vjp(lambda h, w: function(h, w, targets), hidden, head)
        return value, *pull(upstream)

    wanted = jax.jit(lambda: both(lambda h, w, t: plain(h, w, t, softcap)))()
    found = jax.jit(lambda: both(chunked(softcap, width)))()
    for a, b in zip(found, wanted):
        assert a.shape == b.shape and a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_value_in_float64_numpy():
    hidden, head, targets, _ = (np.asarray(x) for x in arrays())
    logits = hidden.astype(np.float64) @ head.astype(np.float64).T
    lse = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))
    picked = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    wanted = picked - lse - logits.max(-1)
    found = chunked(None, 3)(*map(jnp.asarray, (hidden, head, targets)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_large_logits_stay_finite():
    hidden, head, targets, upstream = arrays(scale=1e4)
    value, pull = jax.vjp(lambda h: chunked(None, 2)(h, head, targets), hidden)
    assert np.isfinite(value).all() and np.isfinite(pull(upstream)[0]).all()


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_bfloat16_is_close(softcap):
    hidden, head, targets, upstream = arrays(scale=1.0)
    low = [x.astype(jnp.bfloat16) for x in (hidden, head)]

    def both(function, hidden, head):
        value, pull = jax.vjp(lambda h, w: function(h, w, targets), hidden, head)
        return value, *pull(upstream)

    found = both(chunked(softcap, 3, "bfloat16"), *low)
    # The inputs' own rounding is no part of the error.
    exact = [x.astype(jnp.float32) for x in low]
    wanted = both(lambda h, w, t: plain(h, w, t, softcap), *exact)
    assert found[0].dtype == jnp.float32
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=1e-5)
    for a, b in zip(found[1:], wanted[1:]):
        assert a.dtype == jnp.bfloat16
        scale = float(jnp.abs(b).max())
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=scale * 2**-7)


@functools.cache
def model_arrays(T=12):
    params = decoder().init(jax.random.key(0))
    rng = np.random.default_rng(2)
    tokens = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    lengths = np.asarray([T, 5, 1])
    mask = jnp.asarray(np.arange(T) < lengths[:, None], jnp.int32)
    return params, tokens, mask


def run_log_probs(params, tokens, mask):
    return jax.jit(lambda p: log_probs(decoder(), p, from_mask(tokens, mask)))(params)


def test_log_probs_are_zero_at_padding_and_count_real_tokens():
    params, tokens, mask = model_arrays()
    logp = np.asarray(run_log_probs(params, tokens, mask))
    assert logp.shape == (B, 11)
    assert (logp[0] < 0).all() and (logp[1, :4] < 0).all()
    assert not logp[1, 4:].any() and not logp[2].any()


def test_an_all_padding_row_has_finite_gradients():
    params, tokens, _ = model_arrays()
    mask = jnp.asarray(np.arange(12) < np.asarray([12, 0, 1])[:, None], jnp.int32)

    @jax.jit
    def grads(params, tokens, mask):
        return jax.grad(
            lambda p: jnp.sum(log_probs(decoder(), p, from_mask(tokens, mask)))
        )(params)

    found, alone = grads(params, tokens, mask), grads(params, tokens[:1], mask[:1])
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone)):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_one_position_has_no_log_prob():
    params, tokens, mask = model_arrays()
    assert log_probs(
        decoder(), params, from_mask(tokens[:, :1], mask[:, :1])
    ).shape == (B, 0)


def largest_buffer(text):
    """Elements of the largest array of a compiled program."""
    found = re.findall(r"(?:f32|bf16|pred|s32)\[([\d,]+)\]", text)
    return max(int(np.prod([int(n) for n in dims.split(",")])) for dims in found)


def test_whole_logits_never_exist_in_forward_and_backward():
    rows, length, vocab, width = 4, 65, 1009, 50
    config = dataclasses.replace(CONFIG, vocab_size=vocab)
    model = Decoder(config)
    params = model.abstract_params()
    shape = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    chunk_bytes = 4 * rows * (length - 1) * width

    def total(params, tokens, mask, bound):
        chunked = dataclasses.replace(model, chunk_bytes=bound)
        return jnp.sum(log_probs(chunked, params, from_mask(tokens, mask)))

    def program(bound):
        step = jax.value_and_grad(lambda p, t, m: total(p, t, m, bound))
        return jax.jit(step).lower(params, shape, shape).compile().as_text()

    largest = largest_buffer(program(chunk_bytes))
    # A block of logits, the embedding, or the scores of three heads of attention.
    assert largest <= max(rows * length * width, vocab * D, rows * 3 * length**2)
    # The measure sees whole logits where they are asked for.
    whole = largest_buffer(program(4 * rows * vocab * length))
    assert whole >= rows * (length - 1) * vocab
