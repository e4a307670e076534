"""The facade: prompts are checked and named; a merge says what rounding took."""

import dataclasses
import math
import warnings

import jax
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tpmm_jax as tpmm
from tpmm_jax.errors import BadInput
from tpmm_jax.merging import weighted_sum


@pytest.fixture(scope="module")
def model(fixtures):
    return tpmm.load(fixtures / "llama")


@pytest.mark.parametrize("bad", [-1, "V"])
def test_ids_outside_the_vocabulary_are_named(model, bad):
    vocabulary = model.config.vocab_size
    bad = vocabulary if bad == "V" else bad
    with pytest.raises(BadInput, match=rf"prompt 1 has .*{bad}.* has {vocabulary}"):
        tpmm.generate(model, [[1, 2], [3, bad]], max_new_tokens=1)


@pytest.mark.parametrize("bad", [[1, "x"], [[1]], 7, {"role": "user"}, [1.5], []])
def test_prompts_that_are_no_prompts_are_named(model, bad):
    with pytest.raises(BadInput, match="prompt 1 is "):
        tpmm.generate(model, [[1, 2], bad], max_new_tokens=1)


def test_a_text_that_is_too_long_is_refused_with_its_true_length(model):
    core = Tokenizer(models.WordLevel({"<unk>": 0, "word": 1}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    with_text = dataclasses.replace(model, tokenizer=tokenizer)
    length = model.config.max_positions + 77
    limit = model.config.max_positions - 5
    with pytest.raises(BadInput, match=f"prompt 1 has {length} tokens.* 1 to {limit} "):
        tpmm.generate(with_text, ["word", "word " * length], max_new_tokens=5)


def test_a_merge_says_how_far_it_is_above_rounding(model):
    moved = dataclasses.replace(
        model, params=jax.tree.map(lambda x: x + 1e-4, model.params)
    )
    origin = tpmm.merge([model, moved], [0.5, 0.5]).origin
    ratio = weighted_sum([model.params, moved.params], [0.5, 0.5])[1]
    assert origin["signal_to_rounding"] == ratio and 100 < ratio < math.inf
    assert origin["source"] == "merge" and origin["weights"] == [0.5, 0.5]
    one_hot = tpmm.merge([model, moved], [0, 1]).origin
    assert one_hot["signal_to_rounding"] == math.inf


def test_a_faint_merge_is_not_saved_in_bfloat16_in_silence(model, tmp_path):
    """Whether the cast is save's or was made before; the first model loses nothing."""
    moved = dataclasses.replace(
        model, params=jax.tree.map(lambda x: x + 1e-6, model.params)
    )
    merged = tpmm.merge([model, moved], [0.5, 0.5])
    ratio = merged.origin["signal_to_rounding_bfloat16"]
    assert 0 < ratio < 1
    cast = jax.tree.map(lambda x: x.astype("bfloat16"), merged.params)
    with pytest.warns(UserWarning, match=f"only {ratio:.2g} times .* in float32"):
        tpmm.save(merged, tmp_path / "half", dtype="bfloat16")
    with pytest.warns(UserWarning, match="the merge is rounded away"):
        tpmm.save(dataclasses.replace(merged, params=cast), tmp_path / "cast")
    loaded = tpmm.load(tmp_path / "half", dtype="bfloat16").params
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), loaded, cast))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tpmm.save(merged, tmp_path / "whole")
        first = tpmm.merge([model, moved], [1, 0])
        tpmm.save(first, tmp_path / "first", dtype="bfloat16")
    with pytest.raises(BadInput, match="dtype is float16"):
        tpmm.save(merged, tmp_path / "other", dtype="float16")
