"""The decoders agree with themselves: cached or whole, padded or not, in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import FAMILIES, decode, ints, one_logits, prefill, read

import tpmm_jax as tpmm
from tpmm_jax.losses import log_probs
from tpmm_jax.models import from_mask


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_is_the_full_forward(fixtures, family):
    """Rows of one text, padded by 0 and by 3 on the left."""
    decoder, params, golden = read(fixtures, family)
    T, first = 19, 7
    ids = golden["input_ids"][0, :T]
    tokens = ints([ids, np.concatenate([[0] * 3, ids[:-3]])])
    mask = ints([[1] * T, [0] * 3 + [1] * (T - 3)])
    rows = from_mask(tokens, mask)
    full = jax.jit(lambda p: decoder.logits(p, decoder.hidden(p, rows)))(params)
    # A last-bit change of the weights moves Gemma's logits (up to 16) by 3e-5.
    tolerance = 2e-6 * max(float(jnp.abs(full).max()), 5.0)
    hidden, state = prefill(
        decoder, params, tokens[:, :first], mask[:, :first], T - first
    )
    for t in range(first, T):
        logits = one_logits(decoder, params, hidden)
        np.testing.assert_allclose(logits, full[:, t - 1], rtol=0, atol=tolerance)
        found, wanted = (jax.nn.log_softmax(x) for x in (logits, full[:, t - 1]))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=max(tolerance, 1e-5))
        hidden, state = decode(decoder, params, tokens[:, t], state)


def test_rows_do_not_see_each_other(fixtures, family="qwen3"):
    decoder, params, golden = read(fixtures, family)
    tokens, mask = ints(golden["input_ids"]), ints(golden["attention_mask"])
    run = jax.jit(lambda t, m: log_probs(decoder, params, from_mask(t, m)))
    together, alone = run(tokens, mask), run(tokens[1:2], mask[1:2])
    np.testing.assert_allclose(together[1], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3"])
def test_gemma_in_bfloat16_stays_finite_with_padding(fixtures, family):
    """Rows padded on both sides, of one token, and of none: values and gradients."""
    model = tpmm.load(fixtures / family, dtype="bfloat16")
    T, decoder = 24, model.decoder
    tokens = ints(np.random.default_rng(0).integers(0, 97, (5, T)))
    mask = np.zeros((5, T))
    for row, where in enumerate((slice(T), slice(9, T), slice(7), slice(1), slice(0))):
        mask[row, where] = 1
    mask = ints(mask)

    @jax.jit
    def run(params):
        def loss(params):
            return log_probs(decoder, params, from_mask(tokens, mask)).sum()

        return jax.value_and_grad(loss)(params)

    # A value that is not finite at padding would reach the gradients.
    for x in jax.tree.leaves(run(model.params)):
        assert np.isfinite(np.asarray(x, np.float32)).all()
    # Decoding, where one row's prompt is nothing but padding.
    hidden, state = prefill(decoder, model.params, tokens[:, ::-1], mask[:, ::-1], 2)
    hidden, state = decode(decoder, model.params, tokens[:, 0], state)
    for x in jax.tree.leaves((hidden, state)):
        assert np.isfinite(np.asarray(x, np.float32)).all()


def test_ids_at_padding_do_not_matter(fixtures):
    model = tpmm.load(fixtures / "gemma")
    a = tpmm.log_probs(model, [[5, 6, 7, -100]], [[1, 1, 1, 0]])
    b = tpmm.log_probs(model, [[5, 6, 7, 0]], [[1, 1, 1, 0]])
    np.testing.assert_array_equal(a, b)
