"""Rows do not see each other, nor padding; bfloat16 stays finite."""

import jax
import numpy as np
import pytest
from golden_models import decode, ints, prefill, read

import tpmm_jax as tpmm
from tpmm_jax.losses import log_probs
from tpmm_jax.models import from_mask


def test_rows_do_not_see_each_other(fixtures, family="qwen3"):
    decoder, params, golden = read(fixtures, family)
    tokens, mask = ints(golden["input_ids"]), ints(golden["attention_mask"])
    run = jax.jit(lambda t, m: log_probs(decoder, params, from_mask(t, m)))
    together, alone = run(tokens, mask), run(tokens[1:2], mask[1:2])
    np.testing.assert_allclose(together[1], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "family", [pytest.param("gemma", marks=pytest.mark.slow), "gemma2", "gemma3"]
)
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
