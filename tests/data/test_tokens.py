"""Token ids and masks: BOS and EOS once, no gained space, masks from lengths."""

import copy
import dataclasses
import os
import pathlib

import numpy as np
import pytest
import tokenizers_for_tests as small
from reading import describe_row, encode, load_pairs
from transformers import AddedToken, AutoTokenizer

from tpmm_jax.data._pair_tokens import count_table
from tpmm_jax.data.batches import collate, pad_prompts
from tpmm_jax.data.messages import Message
from tpmm_jax.data.pairs import PreferencePair
from tpmm_jax.data.prompt_tokens import encode_prompts
from tpmm_jax.data.prompts import Prompt
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.table import take
from tpmm_jax.errors import BadInput

SHARED = pathlib.Path(
    os.environ.get("TPMM_ASSETS") or pathlib.Path(__file__).parents[3] / "shared"
)
STORIES = SHARED / "models" / "stories260k"

BYTES, SPACES = small.byte_level(), small.metaspace()
CHATML, TURNS = small.byte_level(small.CHATML), small.metaspace(small.TURNS)
ALL = {"bytes": BYTES, "metaspace": SPACES}
if STORIES.is_dir():
    ALL["stories260k"] = AutoTokenizer.from_pretrained(STORIES)
every = pytest.mark.parametrize("tokenizer", ALL.values(), ids=ALL.keys())


def _pair(prompt, chosen, rejected, origin="f:1"):
    return PreferencePair(prompt, chosen, rejected, origin)


def _encode(tokenizer, *pairs, prompt=64, completion=64, **options):
    limits = {"max_prompt_length": prompt, "max_completion_length": completion}
    return encode(small.codec(tokenizer, **limits, **options), pairs)


def _encode_prompt(tokenizer, prompt, *, max_length=64, **options):
    codec = small.codec(tokenizer, max_prompt_length=max_length, **options)
    return encode_prompts(codec, [prompt])[0]


def test_ids_without_an_embedding_are_refused_by_name():
    tokenizer = copy.deepcopy(BYTES)
    known = len(tokenizer)
    tokenizer.add_tokens([AddedToken("<image>", special=True)])
    tokenizer.pad_token = "<image>"
    before = dict(vars(tokenizer))
    codec = dataclasses.replace(small.codec(tokenizer), num_embeddings=known)
    assert codec.pad_id == tokenizer.eos_token_id
    good, bad = _pair("a", "b", "c"), _pair("a", "b", "c <image>", "f:2")
    assert len(encode(codec, [good]).rows) == 1
    with pytest.raises(BadInput, match=rf"f:2.*no embedding for <image> \(id {known}"):
        encode(codec, [good, bad])
    for prompt in ("say <image>", (known,)):
        with pytest.raises(BadInput, match="no embedding for <image>"):
            encode_prompts(codec, [prompt])
    # Of a model that embeds all of them it is a token like others.
    assert len(_encode(tokenizer, good, bad).rows) == 2
    assert vars(tokenizer) == before


def _text(tokenizer, ids):
    """The text of ids in the middle of a text, which strips no leading space."""
    front = tokenizer("a", add_special_tokens=False)["input_ids"]
    return tokenizer.decode(front + ids).removeprefix("a")


@every
def test_bos_stands_once_if_the_tokenizer_adds_it(tokenizer):
    ids = _encode_prompt(tokenizer, "the sky").ids
    assert ids == tokenizer("the sky")["input_ids"]
    bos = tokenizer.bos_token_id
    assert ids.count(bos) == (bos is not None)
    if bos is not None:
        text = tokenizer.bos_token + "the sky"
        twice = _encode_prompt(tokenizer, text).ids
        assert twice.count(bos) == 1 and twice[0] == bos


@every
@pytest.mark.parametrize("completion", [" is blue", "blue", "\nblue", "é!", "", "  b"])
@pytest.mark.parametrize("prompt", ["the sky", "the sky is\n", "the sky: ", "the sk"])
def test_completions_keep_their_text_and_end_with_eos_once(
    tokenizer, prompt, completion
):
    pair = _pair(prompt, completion, " something else")
    row = _encode(tokenizer, pair).rows[0]
    assert row.chosen_ids[-1] == tokenizer.eos_token_id
    assert row.chosen_ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.bos_token_id not in row.chosen_ids
    front = tokenizer(prompt)["input_ids"]
    assert row.prompt_ids == front
    if tokenizer is not SPACES or completion.isascii():
        assert _text(tokenizer, row.chosen_ids[:-1]) == completion


@every
def test_joined_ids_are_those_of_the_joined_text(tokenizer):
    row = _encode(tokenizer, _pair("the sky", " is blue", " is green")).rows[0]
    joined = tokenizer("the sky is blue")["input_ids"]
    assert row.prompt_ids + row.chosen_ids[:-1] == joined


@every
def test_a_completion_without_a_space_gains_none(tokenizer):
    alone = tokenizer("blue", add_special_tokens=False)["input_ids"]
    # Joined as it stands, and tokenised apart where the prompt's space merges.
    for prompt in ("the sky", "the sky "):
        result = _encode(tokenizer, _pair(prompt, "blue", "green"))
        ids = result.rows[0].chosen_ids
        assert _text(tokenizer, ids[:-1]) == "blue"
        if tokenizer is not BYTES:
            assert ids[: len(alone)] != alone


def test_tokens_that_merge_across_the_boundary_are_counted():
    result = _encode(BYTES, _pair("the sky is ", "blue", "green"))
    assert result.counts["boundary_merged"] == 2
    row = result.rows[0]
    assert BYTES.decode(row.prompt_ids + row.chosen_ids[:-1]) == "the sky is blue"
    result = _encode(BYTES, _pair("the sky is", " blue", " green"))
    assert result.counts["boundary_merged"] == 0


@every
def test_prompts_are_cut_on_the_documented_side(tokenizer):
    text = "Once upon a time there was a little dog"
    full = tokenizer(text)["input_ids"]
    bos = tokenizer.bos_token_id
    left = _encode_prompt(tokenizer, text, max_length=5)
    assert left.truncated and len(left.ids) == 5
    assert left.ids == (full[-5:] if bos is None else [bos, *full[-4:]])
    right = _encode_prompt(tokenizer, text, max_length=5, truncate_prompt="right")
    assert right.truncated and right.ids == full[:5]
    exact = _encode_prompt(tokenizer, text, max_length=len(full))
    assert exact.ids == full and not exact.truncated
    for cut, side in ((left, "left"), (right, "right")):
        pair = _pair(text, " ran", " sat")
        result = _encode(tokenizer, pair, prompt=5, truncate_prompt=side)
        assert result.counts["boundary_merged"] == 0
        assert result.rows[0].prompt_ids == cut.ids
        assert _text(tokenizer, result.rows[0].chosen_ids[:-1]) == " ran"
    one = _encode_prompt(tokenizer, text, max_length=1)
    assert one.ids == full[-1:]


@every
def test_cut_completions_have_no_eos_and_equal_ones_are_dropped(tokenizer):
    same = " is blue and the grass is green"
    pairs = [
        _pair("the sky", same + " today", same + " tonight"),
        _pair("the sky", " was", " has been blue and green today"),
    ]
    result = _encode(tokenizer, *pairs, completion=6, prompt=2)
    assert len(result.rows) == 1 and result.rows[0].origin == "f:1"
    assert result.counts["identical_after_truncation"] == 1
    assert result.counts["rejected_truncated"] == 2
    assert result.counts["pairs"] == 2 and result.counts["rows"] == 1
    assert len(result.rows[0].rejected_ids) == 6
    assert tokenizer.eos_token_id not in result.rows[0].rejected_ids
    assert not _encode(tokenizer, pairs[0], completion=6).rows


def test_specials_inside_the_data_are_counted():
    result = _encode(SPACES, _pair("a", "<s> the", " sky</s></s> \n"))
    assert result.counts["bos_removed"] == result.counts["behind_end"] == 1
    row = result.rows[0]
    assert SPACES.bos_token_id not in row.chosen_ids
    assert (
        row.rejected_ids
        == _encode(SPACES, _pair("a", "b", " sky")).rows[0].rejected_ids
    )
    assert _encode(SPACES, _pair("a", " \u4e2d", " a")).counts["unknown_tokens"] == 1


def test_a_chat_template_decides_about_bos_and_headers():
    prompt = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    row = _encode(CHATML, _pair("hello", "world", "answer"), chat=True).rows[0]
    assert CHATML.decode(row.prompt_ids) == prompt
    assert CHATML.decode(row.chosen_ids) == "world<|im_end|>"
    row = _encode(TURNS, _pair("hello", "world", "answer"), chat=True).rows[0]
    # An end marker that is not EOS is kept, its line break is not, EOS follows.
    ids = TURNS.convert_tokens_to_ids(["</turn>", "</s>"])
    assert row.chosen_ids[-2:] == ids and row.prompt_ids.count(1) == 1
    assert TURNS.convert_ids_to_tokens(row.prompt_ids[:2]) == ["<s>", "<turn>"]
    expected = TURNS.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True
    )
    assert row.prompt_ids == expected["input_ids"]


def test_conversations_and_texts_encode_alike():
    texts = _pair("hello", "world", "answer")
    turns = _pair(
        (Message("user", "hello"),),
        (Message("assistant", "world"),),
        (Message("assistant", "answer"),),
    )
    one, other = (_encode(CHATML, p, chat=True) for p in (texts, turns))
    assert one == other
    several = PreferencePair(
        turns.prompt,
        (*turns.chosen, Message("user", "a"), Message("assistant", "b")),
        turns.rejected,
        "f:1",
    )
    result = _encode(CHATML, several, chat=True)
    text = "world<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb"
    assert CHATML.decode(result.rows[0].chosen_ids) == text + "<|im_end|>"
    assert result.counts["eos_inside"] == 0


def test_a_template_that_opens_differently_keeps_the_open_prompt():
    tokenizer = small.byte_level(
        small.CHATML.replace(
            "<|im_start|>assistant\n{% endif",
            "<|im_start|>assistant\n<think>\n{% endif",
        )
    )
    result = _encode(tokenizer, _pair("hello", "world", "assistant"), chat=True)
    row = result.rows[0]
    assert result.counts["template_rewrote_prompt"] == 2
    assert tokenizer.decode(row.prompt_ids).endswith("assistant\n<think>\n")
    assert tokenizer.decode(row.chosen_ids) == "world<|im_end|>"
    assert tokenizer.decode(row.rejected_ids) == "assistant<|im_end|>"


def test_what_cannot_be_encoded_is_named_all_at_once():
    system = (Message("system", "s"), Message("user", "u"))
    turns = (Message("assistant", "a"),), (Message("assistant", "b"),)
    pairs = [_pair(system, *turns, "f:3"), _pair("a", *turns, "f:5")]
    with pytest.raises(BadInput, match=r"f:3: .*no system role"):
        _encode(TURNS, *pairs, chat=True)
    with pytest.raises(BadInput, match=r"(?s)f:3: .*switch chat on.*f:5: "):
        _encode(TURNS, *pairs)
    with pytest.raises(BadInput, match="no chat template"):
        _encode(BYTES, *pairs, chat=True)
    odd = small.byte_level()
    odd.chat_template = 5
    with pytest.raises(BadInput, match="chat_template is 5; wanted a text"):
        _encode(odd, *pairs, chat=True)
    with pytest.raises(BadInput, match="max_prompt_length is 0"):
        _encode(BYTES, _pair("a", "b", "c"), prompt=0)
    prompts = [Prompt((7,), "f:1"), Prompt((9999,), "f:2"), Prompt("", "f:3")]
    with pytest.raises(BadInput, match=r"(?s)f:2: .*f:3: "):
        encode_prompts(small.codec(BYTES), prompts)
    no_eos = small.byte_level()
    no_eos.eos_token = None
    with pytest.raises(BadInput, match="no EOS"):
        _encode(no_eos, _pair("a", "b", "c"))


def test_token_id_prompts_stay_as_they_are():
    given = Prompt((5, 1, 5, 7), "f:1")
    assert _encode_prompt(SPACES, given, max_length=9).ids == [5, 1, 5, 7]
    assert _encode_prompt(TURNS, given, chat=True, max_length=2) == ([5, 7], True)


def test_pad_ids_fall_back():
    assert small.codec(SPACES).pad_id == SPACES.eos_token_id
    assert small.codec(BYTES).pad_id == BYTES.pad_token_id == BYTES.eos_token_id
    bare = small.metaspace()
    bare.eos_token = None
    assert small.codec(bare).pad_id == 0


ROWS = [
    PairRow([1, 5], [6, 7, 2], [8, 2]),
    PairRow([1, 2, 0], [0, 2], [2]),
    PairRow([9], [4], [3, 3, 3]),
]


@pytest.mark.parametrize("pad", [0, 2, 77])
def test_masks_come_from_lengths_whatever_the_pad_id(pad):
    table = collate(ROWS, length=7, pad_id=pad)
    batch = take(table, np.arange(3), 5)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "tokens_BNT": ((5, 2, 7), "int32"),
        "mask_BNT": ((5, 2, 7), "int32"),
        "completion_mask_BNT": ((5, 2, 7), "int32"),
        "index_B": ((5,), "int32"),
        "weight_B": ((5,), "float32"),
    }
    np.testing.assert_array_equal(batch["tokens_BNT"][1, 0], [1, 2, 0, 0, 2, pad, pad])
    np.testing.assert_array_equal(batch["mask_BNT"][1, 0], [1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(
        batch["completion_mask_BNT"][1], [[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0, 0]]
    )
    np.testing.assert_array_equal(batch["index_B"], [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(batch["weight_B"], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(batch["tokens_BNT"][3:], batch["tokens_BNT"][:2])
    for b, row in enumerate(ROWS):
        for n, ids in enumerate((row.chosen_ids, row.rejected_ids)):
            at = batch["completion_mask_BNT"][b, n] == 1
            assert batch["tokens_BNT"][b, n][at].tolist() == ids


def test_collate_refuses_what_does_not_fit():
    with pytest.raises(BadInput, match="row 0: 2 prompt and 3 completion tokens"):
        collate(ROWS, length=4, pad_id=0)
    with pytest.raises(BadInput, match=r"row 0 \(f:1\): the prompt and both"):
        collate([PairRow([1], [], [2], "f:1")], length=4, pad_id=0)
    with pytest.raises(BadInput, match="collate: 0 rows"):
        collate([], length=9, pad_id=0)


def test_prompts_are_padded_on_the_left():
    tokens_BT, mask_BT = pad_prompts([[1, 0, 3], [2]], length=4, pad_id=0)
    np.testing.assert_array_equal(tokens_BT, [[0, 1, 0, 3], [0, 0, 0, 2]])
    np.testing.assert_array_equal(mask_BT, [[0, 1, 1, 1], [0, 0, 0, 1]])
    assert tokens_BT.dtype == mask_BT.dtype == np.int32
    for prompts in ([[1], []], [[1], [1] * 5]):
        with pytest.raises(BadInput, match="prompt 1: "):
            pad_prompts(prompts, length=4, pad_id=0)


def test_a_row_is_shown_with_its_masks():
    row = _encode(SPACES, _pair("the sky\n", " is", " is blue", "f:7")).rows[0]
    shown = describe_row(SPACES, row)
    assert row.origin == "f:7" and shown.startswith("chosen (")
    chosen = shown.splitlines()[0]
    assert "<s> " in chosen and chosen.endswith("[▁is] [</s>] · · ·")
    assert "[▁the]" not in shown and shown.count("\n") == 1


def test_counts_are_printed_in_words():
    table = count_table({"rows": 3, "identical": 0, "new": 1})
    assert ("pairs kept", 3) in table and table[-1] == ("new", 1)
    assert len(table) == 3
    counts = _encode(BYTES, _pair("a", "b", "c")).counts
    assert all(what not in counts for what, _ in count_table(counts))


@pytest.mark.skipif(len(ALL) < 3, reason="no ../shared/models")
def test_real_pairs_keep_their_text():
    tokenizer = ALL["stories260k"]
    source = str(SHARED / "data" / "polite_impolite.json")
    pairs = load_pairs(source, on_bad_rows="drop").pairs[:200]
    result = _encode(tokenizer, *pairs, prompt=512, completion=512)
    assert result.counts["rows"] == len(pairs) == 200
    for pair, row in zip(pairs, result.rows):
        text = tokenizer.decode(row.prompt_ids[1:] + row.chosen_ids[:-1])
        assert text == pair.prompt + pair.separator + pair.chosen
        text = tokenizer.decode(row.prompt_ids[1:] + row.rejected_ids[:-1])
        assert text == pair.prompt + pair.separator + pair.rejected
