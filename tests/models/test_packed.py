"""A row of several sequences is those sequences, each in a row of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import rounding

import tpmm_jax as tpmm
from tpmm_jax.losses import log_probs
from tpmm_jax.models import Sequences, from_mask

LENGTHS = (23, 9, 17)
# Before each sequence and at the end.
GAPS = (2, 0, 3, 4)


def pack(texts):
    """All texts in one row [1, T], with padding before, between and after them."""
    columns = []
    for number, (gap, text) in enumerate(zip(GAPS, [*texts, []]), start=1):
        columns += [(7, 0, 0)] * gap
        columns += [(token, place, number) for place, token in enumerate(text)]
    return Sequences(*(jnp.asarray(x, jnp.int32)[None] for x in zip(*columns)))


@pytest.mark.parametrize("family", ["gemma3", "mistral", "qwen3", "llama"])
def test_log_probs_of_a_packed_row_are_those_of_the_rows_apart(fixtures, family):
    model = tpmm.load(fixtures / family)
    # Longer than the window, where there is one: it counts a sequence's own tokens.
    assert (model.config.window or 0) < min(LENGTHS) + 1
    assert (model.config.window is None) == (family in ("qwen3", "llama"))
    rng = np.random.default_rng(4)
    texts = [rng.integers(3, model.config.vocab_size, n).tolist() for n in LENGTHS]
    run = jax.jit(lambda s: log_probs(model.decoder, model.params, s))
    packed = pack(texts)
    found, segments = np.asarray(run(packed))[0], np.asarray(packed.segments_BT)[0]
    for number, text in enumerate(texts, start=1):
        ids = jnp.asarray([text], jnp.int32)
        alone = np.asarray(run(from_mask(ids, jnp.ones_like(ids))))[0]
        here = (segments[:-1] == number) & (segments[1:] == number)
        np.testing.assert_allclose(
            found[here], alone, rtol=0, atol=rounding(fixtures, family)
        )
        assert (alone < 0).all()
    # Neither padding nor the first token of a sequence has one.
    assert np.count_nonzero(found) == sum(LENGTHS) - len(LENGTHS)


def test_gradients_of_a_packed_row_are_those_of_the_rows_apart(fixtures):
    model = tpmm.load(fixtures / "gemma3")
    rng = np.random.default_rng(5)
    texts = [rng.integers(3, model.config.vocab_size, n).tolist() for n in LENGTHS]
    tokens, mask = np.full((3, max(LENGTHS)), 7), np.zeros((3, max(LENGTHS)))
    for row, text in enumerate(texts):
        tokens[row, : len(text)], mask[row, : len(text)] = text, 1
    apart = from_mask(jnp.asarray(tokens, jnp.int32), jnp.asarray(mask, jnp.int32))

    @jax.jit
    def gradient(sequences):
        return jax.grad(lambda p: log_probs(model.decoder, p, sequences).mean())(
            model.params
        )

    found, wanted = gradient(pack(texts)), gradient(apart)
    counts = sum(LENGTHS) + sum(GAPS) - 1, 3 * (max(LENGTHS) - 1)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        a, b = a * counts[0], b * counts[1]
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
