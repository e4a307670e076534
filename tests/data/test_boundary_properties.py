"""Properties of splitting and joining, for texts that hypothesis makes up."""

import re
import string

import pytest
import tokenizers_for_tests as small
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import encode

from tpmm_jax.data._boundary import text_ids
from tpmm_jax.data._joining import Joiner
from tpmm_jax.data._split import split_messages, split_text
from tpmm_jax.data.messages import Message
from tpmm_jax.data.pairs import PreferencePair
from tpmm_jax.data.prompt_tokens import encode_prompts
from tpmm_jax.errors import BadInput

BYTES, SPACES = small.byte_level(), small.metaspace()
CHATML, TURNS = small.byte_level(small.CHATML), small.metaspace(small.TURNS)
TOKENIZERS = {"bytes": BYTES, "metaspace": SPACES}
every = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)

# Few letters, so that words share beginnings; what is known to be hard among them.
HARD = st.sampled_from(
    [*"aab  .,'\n\t-_3", "é", "e\u0301", "日", "🙂", "👋\U0001f3fd", "\r\n", "\u00a0",
     "<|im_end|>", "</s>", " bl", "ue", "ack", "don't", "3.14"]
)  # fmt: skip
TEXT = st.lists(HARD, max_size=12).map("".join)
CONTENT = TEXT.filter(str.strip)
LONG = {"max_prompt_length": 999, "max_completion_length": 999}
quick = settings(max_examples=100, deadline=None)


def _behind_end(tokenizer, text):
    """What stands behind a text's first end, blanks that are known left out."""
    end = tokenizer.eos_token
    behind = text.partition(end)[2].replace(end, "")
    return behind.strip(None if tokenizer is BYTES else " \n")


@quick
@given(TEXT, TEXT, TEXT)
def test_splitting_loses_nothing_and_shares_no_word(front, one, other):
    chosen, rejected = front + one, front + other
    prompt, left, right = split_text(chosen, rejected)
    assert (prompt + left, prompt + right) == (chosen, rejected)
    assert split_text(rejected, chosen) == (prompt, right, left)
    if chosen == rejected:
        assert (left, right) == ("", "")
        return
    # With its blanks: two texts may differ in those alone.
    first, second = (re.match(r"\s*\S+", text) for text in (left, right))
    assert not (first and second) or first.group() != second.group()
    if prompt and left and right and prompt[-1] in string.ascii_letters:
        assert not (left[0] in string.ascii_letters or right[0] in string.ascii_letters)


@every
@quick
@given(front=CONTENT, one=TEXT, other=TEXT)
def test_rows_keep_their_text_their_prompt_and_their_ends(tokenizer, front, one, other):
    pair = PreferencePair(front, one, other, "f:1")
    if one == other:
        return
    codec = small.codec(tokenizer, **LONG)
    last = PreferencePair("a", " b", " c", "f:2")
    if any(_behind_end(tokenizer, text) for text in (one, other)):
        with pytest.raises(BadInput, match="at which sampling ends an answer"):
            encode(codec, [pair])
        return
    encoded = encode(codec, [pair, pair, last])
    front_ids = encode_prompts(codec, [front])[0].ids
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for row in encoded.rows[:-1]:
        assert row.prompt_ids == front_ids
        assert (row.prompt_ids[0] == bos) == (bos is not None)
        for ids, text in ((row.chosen_ids, one), (row.rejected_ids, other)):
            assert ids.index(eos) == len(ids) - 1 and bos not in ids[:1]
            if tokenizer is BYTES and "<|im_end|>" not in front + text:
                assert tokenizer.decode(front_ids + ids[:-1]) == front + text


@every
@quick
@given(front=CONTENT, tail=TEXT)
def test_joining_behind_the_end_of_a_prompt_is_joining_behind_all_of_it(
    tokenizer, front, tail
):
    ids, whole = text_ids(tokenizer, [front, front + tail])
    joiner = Joiner(tokenizer)
    found = joiner.completions(joiner.fronts([front], [ids]), [tail])[0]
    assert found.merged == (whole[: len(ids)] != ids)
    if not found.merged:
        assert ids + found.ids == whole


MESSAGE = st.builds(
    Message, st.sampled_from(["user", "assistant"]), st.sampled_from("ab")
)
TURNS_LIST = st.lists(MESSAGE, max_size=5).map(tuple)


@quick
@given(TURNS_LIST, TURNS_LIST, TURNS_LIST)
def test_conversations_are_split_without_loss_or_a_shared_message(front, one, other):
    prompt, left, right = split_messages(front + one, front + other)
    assert (prompt + left, prompt + right) == (front + one, front + other)
    assert not (left and right and left[0] == right[0])


@pytest.mark.parametrize("tokenizer", [CHATML, TURNS], ids=["chatml", "turns"])
@settings(max_examples=60, deadline=None)
@given(front=CONTENT, one=CONTENT, other=CONTENT)
def test_templates_write_each_row_as_the_whole_conversation(
    tokenizer, front, one, other
):
    # Ends that are typed have tests of their own.
    if one.strip() == other.strip() or tokenizer.eos_token in one + other:
        return
    pairs = [PreferencePair(front, one, other, "f:1")]
    pairs.append(PreferencePair("a", "world", "answer", "f:2"))
    row = encode(small.codec(tokenizer, chat=True, **LONG), pairs).rows[0]
    if row.origin != "f:1":
        return  # two letters that the vocabulary lacks are one token
    turns = [{"role": "user", "content": front}, {"role": "assistant", "content": one}]
    whole = tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"]
    joined = row.prompt_ids + row.chosen_ids
    size = len(row.prompt_ids)
    if whole[:size] == row.prompt_ids:
        # The template's last line break is left out; EOS may follow an end of turn.
        assert whole[: len(joined) - 1] == joined[:-1]
    assert joined.count(tokenizer.bos_token_id) == whole.count(tokenizer.bos_token_id)
