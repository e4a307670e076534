"""A completion ends where sampling does, whatever stands behind that end."""

import pytest
import tokenizers_for_tests as small
from published import CHATML_EOS, GEMMA, LLAMA3, PHI, tokenizer_of
from reading import encode

from tpmm_jax.data._pair_tokens import encode_pairs
from tpmm_jax.data.messages import Message
from tpmm_jax.data.pairs import PreferencePair
from tpmm_jax.data.problems import Problems
from tpmm_jax.errors import BadInput

BYTES = small.byte_level()
ENDS = [
    (small.CHATML, "<|im_end|>", "<|im_end|>", 0),
    (CHATML_EOS, "<|end_of_text|>", "<|im_end|>", 2),
    (GEMMA, "<|end_of_text|>", "<end_of_turn>", 0),
    (LLAMA3, "<|end_of_text|>", "<|eot_id|>", 0),
    (LLAMA3 + "{{ eos_token }}", "<|end_of_text|>", "<|eot_id|>", 2),
    (PHI, "<|end_of_text|>", "<|end|>", 2),
]


def _side(*contents):
    roles = ("assistant", "user")
    return tuple(Message(roles[n % 2], text) for n, text in enumerate(contents))


def _made(template, eos, end):
    tokenizer = tokenizer_of(template, eos)
    ends = (tokenizer.convert_tokens_to_ids(end),)
    return tokenizer, small.codec(tokenizer, chat=True, eos_ids=ends)


@pytest.mark.parametrize("template, eos, end, behind", ENDS)
def test_an_answer_ends_with_the_first_end_that_a_template_writes(
    template, eos, end, behind
):
    tokenizer, codec = _made(template, eos, end)
    asked = (Message("user", "hello"),)
    pairs = [
        PreferencePair("hello", "world", "the sky", "f:1"),
        # Answers that were rendered before end twice.
        PreferencePair("hello", f"world{end}", f"the sky{end}\n", "f:2"),
        PreferencePair(asked, _side("a", "b", "c"), _side("world", "b", "c"), "f:3"),
    ]
    found = encode(codec, pairs)
    texts = [tokenizer.decode(row.chosen_ids) for row in found.rows]
    assert texts[:2] == [f"world{end}"] * 2
    assert tokenizer.decode(found.rows[1].rejected_ids) == f"the sky{end}"
    # Between the turns of one completion an end is in its place.
    assert texts[2].startswith(f"a{end}") and texts[2].endswith(f"c{end}")
    assert texts[2].count(end) == 3
    open_prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True
    )
    assert found.rows[0].prompt_ids == open_prompt["input_ids"]
    assert found.counts["eos_inside"] == 0
    # Of the pre-rendered answers both; of the others what the template writes.
    assert found.counts["behind_end"] == 2 * behind + 2


def test_an_end_that_sampling_does_not_stop_at_stays_inside():
    tokenizer = tokenizer_of(PHI, "<|end_of_text|>")
    pair = PreferencePair("hello", "world", "the sky", "f:1")
    row = encode(small.codec(tokenizer, chat=True), [pair]).rows[0]
    assert tokenizer.decode(row.chosen_ids) == "world<|end|>\n<|end_of_text|>"


@pytest.mark.parametrize("behind", ["\n", "<|im_end|>", " \n<|im_end|>\n\n", ""])
def test_texts_that_end_with_an_end_and_layout_lose_the_layout(behind):
    pair = PreferencePair("the sky", f" is blue<|im_end|>{behind}", " is", "f:1")
    found = encode(small.codec(BYTES), [pair])
    assert BYTES.decode(found.rows[0].chosen_ids) == " is blue<|im_end|>"
    assert found.counts["behind_end"] == bool(behind)


ANSWERED = (Message("user", "hello"),)
TYPED = [
    (False, " is<|im_end|> blue", "blue"),
    (False, "<|im_end|> is", "is"),
    (True, "the<|im_end|> sky", "sky"),
    (True, _side("a<|im_end|> b", "c", "d"), "b"),
    (True, _side("a<|im_end|>", "c", "d"), "the next message"),
    (True, _side("a", "c<|im_end|>d", "d"), "d"),
    (True, _side("a", "c", "d<|im_end|>e"), "e"),
]


@pytest.mark.parametrize("chat, chosen, wanted", TYPED)
@pytest.mark.parametrize("limit", [512, 2])
def test_an_end_typed_before_the_end_is_refused_by_name(chat, chosen, wanted, limit):
    tokenizer = small.byte_level(small.CHATML)
    codec = small.codec(tokenizer, chat=chat, max_completion_length=limit)
    rejected = " no" if isinstance(chosen, str) else _side("no")
    prompt = "hello" if isinstance(chosen, str) else ANSWERED
    pair = PreferencePair(prompt, chosen, rejected, "f:7")
    good = PreferencePair("hello", " b", " c", "f:8")
    said = rf"f:7: field 'chosen': '{wanted}' follows <\|im_end\|>"
    with pytest.raises(BadInput, match=said):
        encode(codec, [pair, good])
    problems = Problems("f", on_bad_rows="drop")
    found = encode_pairs(codec, [pair, good], problems, {"chosen": "better"})
    assert [row.origin for row in found.rows] == ["f:8"]
    assert problems.settle() == 1 and problems.found[0].field == "better"
    assert found.counts["eos_inside"] == 1 and found.counts["pairs"] == 2
