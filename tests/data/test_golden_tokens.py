"""Ids and masks of real tokenizers equal those of plain transformers.

The tokenizers are looked for in the folder that TPMM_TOKENIZERS names; what lies in it,
and how golden.json was made, tests/fixtures/tokens/make_golden.py says.
"""

import functools
import json
import os
import pathlib

import pytest
import tokenizers_for_tests as small
from reading import describe_row, encode
from transformers import AutoTokenizer

from tpmm_jax.data._boundary import text_ids
from tpmm_jax.data.messages import Message
from tpmm_jax.data.pairs import PreferencePair
from tpmm_jax.data.prompt_tokens import encode_prompts
from tpmm_jax.weights.gguf import GGUFFile

FOLDER = pathlib.Path(os.environ.get("TPMM_TOKENIZERS") or "no/such/folder")
GOLDEN = json.loads(
    (pathlib.Path(__file__).parents[1] / "fixtures/tokens/golden.json").read_text()
)
NAMES = ("gemma3", "llama3", "qwen3", "smollm2")
# What sampling stops at, beside EOS: generation_config.json of the instruct models.
ENDS = {"gemma3": (1, 106), "llama3": (128001, 128009)}
every = pytest.mark.parametrize("name", NAMES)


@functools.cache
def load(name):
    folder = FOLDER / name
    if not folder.is_dir():
        pytest.skip("TPMM_TOKENIZERS names no folder with it")
    for path in folder.rglob("*.gguf"):
        return GGUFFile(str(path)).tokenizer()
    return AutoTokenizer.from_pretrained(folder)


def _encode(name, *pairs, chat):
    codec = small.codec(load(name), chat=chat, eos_ids=ENDS.get(name, ()))
    return encode(codec, pairs)


@every
def test_special_tokens(name):
    tokenizer, golden = load(name), GOLDEN[name]
    assert tokenizer.eos_token_id == golden["eos"]
    assert tokenizer.bos_token_id == golden["bos"]


@every
def test_texts(name):
    tokenizer, golden = load(name), GOLDEN[name]["texts"]
    encoded = encode_prompts(small.codec(tokenizer), list(golden))
    assert [list(e.ids) for e in encoded] == list(golden.values())
    plain = tokenizer(list(golden), add_special_tokens=False)["input_ids"]
    assert text_ids(tokenizer, list(golden)) == plain


@every
def test_pairs_join_where_the_joined_text_does(name):
    golden, eos = GOLDEN[name], GOLDEN[name]["eos"]
    joined = golden["texts"]
    cases = [(p, a) for p in GOLDEN["prompts"] for a in GOLDEN["answers"]]
    pairs = [PreferencePair(p, a, "?!", "f:1") for p, a in cases]
    for (prompt, answer), row in zip(cases, _encode(name, *pairs, chat=False).rows):
        front, whole = joined[prompt], joined[prompt + answer]
        assert row.prompt_ids == front
        assert row.chosen_ids[-1] == eos and eos not in row.chosen_ids[:-1]
        if whole[: len(front)] == front:
            assert front + row.chosen_ids[:-1] == whole
        tail = load(name).decode(row.chosen_ids[:-1])
        # A decoder may drop the space before a text's first word.
        assert tail.strip() == answer.strip()


@every
def test_conversations(name):
    golden = GOLDEN[name]
    for case in golden["conversations"]:
        turns = tuple(Message(m["role"], m["content"]) for m in case["messages"])
        other = (Message("assistant", "Something else."),)
        pair = PreferencePair(turns[:-1], turns[-1:], other, "f:1")
        row = _encode(name, pair, chat=True).rows[0]
        assert row.prompt_ids == case["prompt"]
        if golden["bos"] is not None and name != "smollm2":
            assert row.prompt_ids.count(golden["bos"]) == 1
        assert case["whole"][: len(case["prompt"])] == case["prompt"]
        rest = case["whole"][len(case["prompt"]) :]
        end = max(i for i, t in enumerate(rest) if t in (golden["eos"], 128009))
        # Behind the end of turn stand a line break, or Llama 3's unasked header.
        assert row.chosen_ids == rest[: end + 1]
        assert row.rejected_ids[-1] == row.chosen_ids[-1]


@every
def test_the_printed_view_shows_ends_and_masks(name):
    pair = PreferencePair("Hi", "café 日本", "no", "f:1")
    shown = describe_row(load(name), _encode(name, pair, chat=True).rows[0])
    end = load(name).convert_ids_to_tokens(
        GOLDEN[name]["eos"] if name != "llama3" else 128009
    )
    lines = shown.splitlines()
    assert all(f"[{end}] ·" in line for line in lines)
    assert "日" in lines[0] or "<E6>" in lines[0] or "日本" in lines[0]
    begin = {"gemma3": "<bos>", "llama3": "<|begin_of_text|>"}.get(name)
    if begin is not None:
        assert all(line.count(begin) == 1 for line in lines)
