"""The cases of preference data that others get wrong, each by its name.

What becomes of each is written down in docs/data.md.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers_for_tests as small
from reading import encode

from tpmm_jax.data.batches import collate
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.messages import Message
from tpmm_jax.data.pairs import PreferencePair
from tpmm_jax.data.prepare import prepare_pairs
from tpmm_jax.data.records import PairRow
from tpmm_jax.errors import BadInput

BYTES, SPACES = small.byte_level(), small.metaspace()
CHATML, TURNS = small.byte_level(small.CHATML), small.metaspace(small.TURNS)
ASKED = [{"role": "user", "content": "hello"}]
YES, NO = ([{"role": "assistant", "content": text}] for text in ("yes", "no"))


@pytest.fixture
def prepare(tmp_path):
    def run(*rows, tokenizer=BYTES, **options):
        path = tmp_path / "pairs.jsonl"
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("".join(line + "\n" for line in lines))
        codec = small.codec(tokenizer, **options)
        return prepare_pairs(str(path), DataConfig(**options), codec)

    return run


def _pair(chosen, rejected, **more):
    return {**more, "chosen": chosen, "rejected": rejected}


GOOD = _pair(" a", " b", prompt="the sky")


def test_chosen_equals_rejected_is_refused_or_dropped_with_a_count(prepare):
    for same in (
        _pair("blue", "blue", prompt="the sky"),
        _pair("the sky", "the sky"),
        _pair(YES, YES, prompt=ASKED),
    ):
        found = prepare(same)
        with pytest.raises(BadInput, match="'rejected' equals 'chosen'"):
            found.problems.settle()
        assert found.rows == [] and found.counts["identical"] == 1
    found = prepare(GOOD, _pair("blue", "blue", prompt="a"), on_bad_rows="drop")
    assert found.problems.settle() == 1 and len(found.rows) == 1


def test_sides_that_the_tokenizer_cannot_tell_apart_are_dropped(prepare):
    row = _pair("yes ", " yes", prompt=ASKED[0]["content"])
    found = prepare(row, tokenizer=TURNS, chat=True)
    assert found.rows == [] and found.counts["identical_tokens"] == 1


@pytest.mark.parametrize("side", ["chosen", "rejected", "prompt"])
@pytest.mark.parametrize("empty", ["", " \n", None, []], ids=str)
def test_one_side_empty_is_named_with_its_row(prepare, side, empty):
    found = prepare(GOOD, GOOD | {side: empty}, GOOD)
    assert [(d.origin.line, d.field) for d in found.problems.found] == [(2, side)]


@pytest.mark.parametrize("tokenizer", [BYTES, SPACES], ids=["bytes", "metaspace"])
@pytest.mark.parametrize("swap", [False, True])
def test_one_side_is_the_beginning_of_the_other(prepare, tokenizer, swap):
    texts = ["the sky is blue", "the sky is blue and green"]
    found = prepare(_pair(*texts[:: -1 if swap else 1]), tokenizer=tokenizer)
    row = found.rows[0]
    short, long = (
        (row.rejected_ids, row.chosen_ids)
        if swap
        else (row.chosen_ids, row.rejected_ids)
    )
    assert short == [tokenizer.eos_token_id]
    text = tokenizer.decode(row.prompt_ids + long, skip_special_tokens=True)
    assert text == texts[1] and found.counts["ends_early"] == 1
    inside = prepare(_pair("it is blue", "it is blueish"), tokenizer=tokenizer)
    assert inside.pairs[0].prompt == "it is"


def test_strings_that_share_the_beginning_of_a_word_split_before_it(prepare):
    pair = prepare(_pair("the sky is blue", "the sky is black")).pairs[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == (
        "the sky is",
        " blue",
        " black",
    )
    row = prepare(_pair("the sky is blue", "the sky is black")).rows[0]
    whole = BYTES("the sky is blue")["input_ids"]
    assert row.prompt_ids + row.chosen_ids[:-1] == whole


def test_a_string_prompt_with_messages_is_one_user_message_in_every_process():
    code = (
        "import json, sys, tempfile, pathlib\n"
        "from tpmm_jax.data.pairs import read_pair_set\n"
        "from tpmm_jax.data.problems import Problems\n"
        "turn = lambda t: [{'role': 'assistant', 'content': t}]\n"
        "row = dict(prompt='hi', chosen=turn('a'), rejected=turn('b'))\n"
        "path = pathlib.Path(tempfile.mkdtemp()) / 'p.jsonl'\n"
        "path.write_text(json.dumps(row) + '\\n')\n"
        "pair = read_pair_set(str(path), Problems('p')).pairs[0]\n"
        "print(pair.prompt, pair.chosen, pair.rejected)\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    turns = zip(("user", "assistant", "assistant"), ("hi", "a", "b"))
    wanted = [(Message(role, text),) for role, text in turns]
    assert said == {" ".join(map(str, wanted)) + "\n"}


def test_every_malformed_row_is_listed_at_once_with_line_and_field(prepare):
    bad = [
        (GOOD | {"chosen": []}, "chosen"),
        (GOOD | {"chosen": [{"role": "bot", "content": "a"}]}, "chosen"),
        ({"prompt": "a", "chosen": "b"}, "rejected"),
        (GOOD | {"rejected": 3.5}, "rejected"),
        ('{"prompt": "a", "chosen"', None),
        (_pair(YES, NO, prompt=ASKED), "prompt"),
    ]
    found = prepare(GOOD, GOOD, GOOD, *(row for row, _ in bad), GOOD)
    named = {(d.origin.line, d.field) for d in found.problems.found}
    assert {(n, field) for n, (_, field) in enumerate(bad, 4)} <= named
    assert {line for line, _ in named} == set(range(4, 10))
    with pytest.raises(BadInput) as error:
        found.problems.settle()
    assert all(f"pairs.jsonl:{n}: " in str(error.value) for n in range(4, 10))


def test_long_prompts_and_completions_are_cut_on_their_side_and_counted(prepare):
    words = "the sky is blue and the grass is green"
    limits = {"max_prompt_length": 4, "max_completion_length": 3}
    for side, wanted in (("left", slice(-4, None)), ("right", slice(None, 4))):
        found = prepare(
            _pair(f" {words}", " blue", prompt=words),
            _pair(" blue and green", " blue and green too", prompt="a"),
            truncate_prompt=side,
            **limits,
        )
        row = found.rows[0]
        assert row.prompt_ids == BYTES(words)["input_ids"][wanted]
        assert row.chosen_ids == BYTES(f" {words}")["input_ids"][:3]
        counts = found.counts
        assert counts["prompt_truncated"] == 1 and counts["chosen_truncated"] >= 1
        assert len(found.rows) == 1 and counts["identical_after_truncation"] == 1


@pytest.mark.parametrize("pad", [None, "eos"])
def test_masks_come_from_lengths_where_pad_is_missing_or_eos(prepare, pad):
    tokenizer = small.metaspace()
    if pad:
        tokenizer.pad_token = tokenizer.eos_token
    row = prepare(_pair(" blue", " green and", prompt="the"), tokenizer=tokenizer).rows[
        0
    ]
    batch = collate([row], length=40, pad_id=small.codec(tokenizer).pad_id)
    for n, ids in enumerate((row.chosen_ids, row.rejected_ids)):
        size = len(row.prompt_ids)
        assert batch["mask_BNT"][0, n].sum() == size + len(ids)
        under = batch["tokens_BNT"][0, n][batch["completion_mask_BNT"][0, n] == 1]
        assert under.tolist() == ids and under[-1] == tokenizer.eos_token_id
    assert isinstance(row, PairRow) and batch["tokens_BNT"].dtype == np.int32


def test_a_template_that_writes_bos_is_not_doubled(prepare):
    row = prepare(_pair(YES, NO, prompt=ASKED), tokenizer=TURNS, chat=True).rows[0]
    assert row.prompt_ids.count(TURNS.bos_token_id) == 1
    assert row.prompt_ids[0] == TURNS.bos_token_id
    assert TURNS.bos_token_id not in row.chosen_ids + row.rejected_ids


def test_a_completion_ends_at_the_end_of_turn_where_sampling_does():
    end = TURNS.convert_tokens_to_ids("</turn>")
    made = [PreferencePair("hello", "world", "answer", "f:1")]
    codec = small.codec(TURNS, chat=True, eos_ids=(end,))
    row = encode(codec, made).rows[0]
    assert row.chosen_ids[-1] == row.rejected_ids[-1] == end
    assert TURNS.eos_token_id not in row.chosen_ids
    row = encode(small.codec(TURNS, chat=True), made).rows[0]
    assert row.chosen_ids[-2:] == [end, TURNS.eos_token_id]


def test_a_template_that_always_opens_a_turn_ends_no_completion_with_it():
    header = "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
    assert small.TURNS.endswith(header)
    # Jinja drops a line break at a template's end, unless an expression writes it.
    always = small.metaspace(
        small.TURNS.removesuffix(header) + "{{ '<turn>assistant\n' }}"
    )
    made = [PreferencePair("hello", "world", "answer", "f:1")]
    rows = [encode(small.codec(t, chat=True), made).rows[0] for t in (TURNS, always)]
    assert rows[0] == rows[1]


def test_special_tokens_named_twice_are_no_unknown_text(prepare):
    tokenizer = small.byte_level()
    tokenizer.unk_token = tokenizer.eos_token
    assert prepare(GOOD, tokenizer=tokenizer).counts["unknown_tokens"] == 0
