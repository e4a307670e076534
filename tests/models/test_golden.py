"""The decoders agree with transformers' logits, log-probs and greedy tokens.

And cached decoding with the whole forward pass, in the programs of those tests.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import (
    FAMILIES,
    config_of,
    decode,
    ints,
    numbers,
    one_logits,
    prefill,
    read,
    rounding,
)
from scipy.special import log_softmax

import tpmm_jax as tpmm
from tpmm_jax.errors import BadInput
from tpmm_jax.models import Decoder
from tpmm_jax.models.published import SIZES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_older_spelling_is_the_same_model(fixtures, family):
    folder = fixtures / family
    assert config_of(folder, "config.legacy.json") == config_of(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_agree_with_transformers(fixtures, family):
    decoder, params, golden = read(fixtures, family)
    tokens, mask = golden["input_ids"], golden["attention_mask"]
    logits, _ = numbers(decoder, params, tokens, mask)
    B, T = tokens.shape
    error = np.abs(logits[:B, :T] - golden["logits"])[mask > 0]
    assert error.max() <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_token_log_probs_agree_with_transformers(fixtures, family):
    decoder, params, golden = read(fixtures, family)
    tokens, mask = golden["input_ids"], golden["attention_mask"]
    _, logp = numbers(decoder, params, tokens, mask)
    B, T = tokens.shape
    np.testing.assert_allclose(logp[:B, : T - 1], golden["logps"], rtol=0, atol=1e-4)
    assert not logp[:, T - 1 :].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_counted(fixtures, family):
    decoder, params, _ = read(fixtures, family)
    assert sum(x.size for x in jax.tree.leaves(params)) == decoder.num_params


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_agrees_with_transformers(fixtures, family):
    decoder, params, golden = read(fixtures, family)
    tokens, mask = ints(golden["gen_input_ids"]), ints(golden["gen_attention_mask"])
    new = golden["greedy"].shape[1]
    hidden, state = prefill(decoder, params, tokens, mask, new)
    for step in range(new):
        logits = one_logits(decoder, params, hidden)
        sure = golden["greedy_margin"][:, step] > 1e-3
        found = np.asarray(jnp.argmax(logits, -1))
        assert (found == golden["greedy"][:, step])[sure].all()
        # transformers' own token goes on, so that one near-tie does not spread.
        hidden, state = decode(decoder, params, ints(golden["greedy"][:, step]), state)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_is_the_full_forward(fixtures, family):
    """Rows of one text, padded by 0, 3 and 5 on the left."""
    decoder, params, golden = read(fixtures, family)
    # As many rows and slots as of the greedy prompts: the same programs.
    (B, first), new = golden["gen_input_ids"].shape, golden["greedy"].shape[1]
    ids = golden["input_ids"][0]
    T = len(ids)
    tokens, mask = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    for row, left in enumerate((0, 3, 5)):
        tokens[row, left:], mask[row, left:] = ids[: T - left], 1
    full = numbers(decoder, params, tokens, mask)[0][:B]
    tolerance = rounding(fixtures, family)
    hidden, state = prefill(
        decoder, params, ints(tokens[:, :first]), ints(mask[:, :first]), new
    )
    for t in range(first, T):
        logits = np.asarray(one_logits(decoder, params, hidden))
        np.testing.assert_allclose(logits, full[:, t - 1], rtol=0, atol=tolerance)
        found, wanted = (log_softmax(x, axis=-1) for x in (logits, full[:, t - 1]))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)
        hidden, state = decode(decoder, params, ints(tokens[:, t]), state)


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.slow) for f in ("gemma", "mistral")]
    + ["gemma3", "qwen3"],
)
def test_generate_continues_token_prompts_greedily(fixtures, family):
    golden = np.load(fixtures / family / "golden.npz")
    model = tpmm.load(fixtures / family)
    prompts = [
        row[mask > 0].tolist()
        for row, mask in zip(golden["gen_input_ids"], golden["gen_attention_mask"])
    ]
    new = golden["greedy"].shape[1]
    found = tpmm.generate(model, prompts, max_new_tokens=new, temperature=0.0)
    for (ids,), wanted, margin in zip(
        found, golden["greedy"].tolist(), golden["greedy_margin"]
    ):
        sure = new if (margin > 1e-3).all() else int(np.argmin(margin > 1e-3))
        if 1 in wanted:
            sure = min(sure, wanted.index(1) + 1)
        assert sure > 3
        assert ids[:sure] == wanted[:sure]


@pytest.mark.parametrize("family", ["gemma"])
def test_facade_takes_numpy_and_lists(fixtures, family):
    golden = np.load(fixtures / family / "golden.npz")
    model = tpmm.load(str(fixtures / family))
    tokens, mask = golden["input_ids"], golden["attention_mask"]
    logits = tpmm.logits(model, tokens.tolist(), mask.tolist())
    error = np.abs(np.asarray(logits) - golden["logits"])[mask > 0]
    assert logits.dtype == jnp.float32 and error.max() <= 1e-4
    logp = tpmm.log_probs(model, tokens, mask.astype(bool))
    np.testing.assert_allclose(logp, golden["logps"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_either_side_changes_no_log_prob(fixtures, family):
    """One text in rows of 30 slots, behind 0, 1, 4 and 13 of padding."""
    decoder, params, golden = read(fixtures, family)
    lefts, ids = (0, 1, 4, 13), golden["input_ids"][0, :17]
    tokens = np.random.default_rng(3).integers(0, decoder.config.vocab_size, (4, 30))
    mask = np.zeros((4, 30))
    for row, left in enumerate(lefts):
        tokens[row, left : left + 17], mask[row, left : left + 17] = ids, 1
    _, logp = numbers(decoder, params, tokens, mask)
    plain = golden["logps"][0, :16]
    for row, left in enumerate(lefts):
        where = slice(left, left + 16)
        np.testing.assert_allclose(logp[row, where], logp[0, :16], rtol=0, atol=1e-5)
        # Without any padding at all, by transformers.
        np.testing.assert_allclose(logp[row, where], plain, rtol=0, atol=1e-4)
    assert not logp[mask[:, 1:] * mask[:, :-1] == 0].any()


def test_a_row_of_one_token_has_no_log_prob(fixtures):
    model = tpmm.load(fixtures / "llama")
    assert tpmm.log_probs(model, [[5], [6]], [[1], [1]]).shape == (2, 0)


def test_bfloat16_stays_close(fixtures):
    golden = np.load(fixtures / "qwen3" / "golden.npz")
    model = tpmm.load(fixtures / "qwen3", dtype="bfloat16")
    assert {str(x.dtype) for x in jax.tree.leaves(model.params)} == {"bfloat16"}
    logp = np.asarray(
        tpmm.log_probs(model, golden["input_ids"], golden["attention_mask"])
    )
    assert logp.dtype == np.float32
    # bfloat16 keeps 8 bits: each of a few roundings moves a logit by |logit| / 256.
    assert (
        np.abs(logp - golden["logps"]).max() < 4 * np.abs(golden["logits"]).max() / 256
    )


@pytest.mark.parametrize(
    "tokens, mask, wanted",
    [
        ([[1, 2, 3]], [[1, 1]], "shape"),
        ([1, 2, 3], [1, 1, 1], "shape"),
        ([[1.0, 2.0]], [[1, 1]], "integer"),
        ([[1, 512]], [[1, 1]], "512"),
        ([[1, -1]], [[1, 1]], "-1"),
        ([[1, 2, 3]], [[1, 0, 1]], "gap"),
        ([[1, 2, 3]], [[0, 1, 0]], "both sides"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(fixtures, tokens, mask, wanted):
    model = tpmm.load(fixtures / "gemma")
    for function in (tpmm.logits, tpmm.log_probs):
        with pytest.raises(BadInput, match=wanted):
            function(model, tokens, mask)


@pytest.mark.parametrize("ids", [[512], [3, -1], [10**12]])
def test_generate_refuses_ids_outside_the_vocabulary(fixtures, ids):
    model = tpmm.load(fixtures / "gemma")
    with pytest.raises(BadInput, match="512"):
        tpmm.generate(model, [[5], ids], max_new_tokens=2)


@pytest.mark.parametrize("prompt", [[1.5, 2.0], ["a", "b"], [None]])
def test_generate_refuses_prompts_of_other_kinds(fixtures, prompt):
    with pytest.raises(BadInput, match="token ids"):
        tpmm.generate(tpmm.load(fixtures / "gemma"), [prompt])


def test_generate_refuses_text_without_a_tokenizer(fixtures):
    model = tpmm.load(fixtures / "gemma")
    with pytest.raises(BadInput, match="tokenizer"):
        tpmm.generate(model, ["hello"])
    with pytest.raises(BadInput, match="list"):
        tpmm.generate(model, "hello")
    assert tpmm.generate(model, []) == []


# Counted in the families' own reports and model cards.
@pytest.mark.parametrize(
    "name, wanted",
    [
        ("gemma-2b", 2_506_172_416),
        ("gemma-7b", 8_537_680_896),
        ("gemma2-2b", 2_614_341_888),
        ("gemma3-270m", 268_098_176),
        ("gemma3-1b", 999_885_952),
        ("smollm2-135m", 134_515_008),
        ("llama3-8b", 8_030_261_248),
        ("llama3.1-8b", 8_030_261_248),
        ("mistral-7b", 7_241_732_096),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-30b-a3b", 30_532_122_624),
    ],
)
def test_published_sizes_have_the_published_number_of_weights(name, wanted):
    assert Decoder(SIZES[name]).num_params == wanted
