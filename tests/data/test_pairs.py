"""Pairs keep every word on its side; what cannot be trained on is named or counted."""

import json
import os
import pathlib
import random
import re

import pytest
from reading import load_pairs

from tpmm_jax.data._split import split_text
from tpmm_jax.data.messages import Message
from tpmm_jax.data.pairs import read_pair_set
from tpmm_jax.data.problems import Problems
from tpmm_jax.errors import BadInput

ASSETS = os.environ.get("TPMM_ASSETS") or pathlib.Path(__file__).parents[3] / "shared"
SHARED = pathlib.Path(ASSETS) / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")


FLAG = "\U0001f1e9\U0001f1f0"


def user(text):
    return {"role": "user", "content": text}


def reply(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def load(tmp_path):
    def run(*rows, **options):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_pairs(str(path), **options)

    return run


def _parts(pair):
    return pair.prompt, pair.chosen, pair.rejected


@pytest.mark.parametrize(
    "chosen, rejected, prompt",
    [
        ("The sky is blue", "The sky is black", "The sky is"),
        ("The sky is blue", "The sky is blue today", "The sky is blue"),
        ("The sky is blue", "The sky is blueish", "The sky is"),
        ("Q: a?\nA: yes", "Q: a?\nA: no", "Q: a?\nA:"),
        ("Q: a?\n\nYes", "Q: a?\n\nNo", "Q: a?\n\n"),
        ("Q: a?\n\n  x", "Q: a?\n\n  y", "Q: a?\n\n"),
        ("pi is 3.14", "pi is 3.15", "pi is"),
        ("I don't", "I don'll", "I"),
        ("say:yes", "say:no", "say:"),
        ("Two. Three", "Two, Three", "Two"),
        ("an e-mail", "an e-bike", "an"),
        ("一二三", "一二四", "一二"),
        ("oui cafe\u0301", "oui cafe", "oui"),
        ("wave \U0001f44b\U0001f3fd", "wave \U0001f44b\U0001f3ff", "wave"),
        ("a\r\nb", "a\rb", "a"),
        # Flags of one letter's difference, a third one behind two, families, keycaps.
        ("hi \U0001f1e9\U0001f1ea", "hi \U0001f1e9\U0001f1f0", "hi"),
        (f"hi {2 * FLAG}\U0001f1e9\U0001f1ea", f"hi {3 * FLAG}", f"hi {2 * FLAG}"),
        ("x \U0001f469\u200d\U0001f467", "x \U0001f469\u200d\U0001f466", "x"),
        ("x \U0001f469\u200d\U0001f467", "x \U0001f469!", "x"),
        ("x \U0001f469\ufe0f\u200d\U0001f467", "x \U0001f469\ufe0e", "x"),
        ("x 1\ufe0f\u20e3", "x 1.", "x"),
        ("x \u1100\u1161", "x \u1100\u1162", "x"),
        ("ka \u0915\u094d\u0937", "ka \u0915\u094d\u0930", "ka"),
        ("an e\u2011mail", "an e\u2011bike", "an"),
        ("rock \u2018n\u2019roll", "rock \u2018n\u2019rap", "rock \u2018"),
        ("the o\u2018clock", "the o\u2018dear", "the"),
    ],
)
def test_implicit_prompts_end_between_words(chosen, rejected, prompt):
    assert split_text(chosen, rejected)[0] == prompt
    assert split_text(rejected, chosen)[0] == prompt


def test_splitting_loses_nothing_and_leaves_no_shared_word():
    rng = random.Random(0)
    words = ["a", "bc", "bd", "3.1", "3.2", "\n", "x:", "don't", "é", "一", "."]
    for _ in range(2000):
        common, one, other = (
            " ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(3)
        )
        chosen, rejected = f"{common} {one}", f"{common} {other}"
        if chosen == rejected:
            continue
        prompt, left, right = split_text(chosen, rejected)
        assert (prompt + left, prompt + right) == (chosen, rejected)
        firsts = [re.match(r"\s*\S+", text) for text in (left, right)]
        if all(firsts):
            assert firsts[0].group() != firsts[1].group(), (chosen, rejected)


@pytest.mark.parametrize("explicit", [True, False])
def test_texts(load, explicit):
    prompt = {"prompt": "The sky is"} if explicit else {}
    front = "" if explicit else "The sky is"
    row = prompt | {"chosen": f"{front} blue", "rejected": f"{front} black"}
    pair_set = load(row, row | {"chosen": row["chosen"] + "!"})
    assert _parts(pair_set.pairs[0]) == ("The sky is", " blue", " black")
    assert pair_set.pairs[1].origin.endswith("pairs.jsonl:2")
    assert pair_set.counts["rows_read"] == pair_set.counts["pairs"] == 2
    assert pair_set.counts["duplicate_prompts"] == 1


def test_one_text_may_be_the_beginning_of_the_other(load):
    pair_set = load({"chosen": "It is blue", "rejected": "It is blue, or so"})
    assert _parts(pair_set.pairs[0]) == ("It is blue", "", ", or so")
    assert pair_set.counts["ends_early"] == 1


def test_transcripts_end_at_the_last_common_turn(load):
    other = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman:"
    front = other + " why\n\nAssistant:"
    pair_set = load(
        {"chosen": front + " Because.", "rejected": front + " Because I say so."},
        {"chosen": front + " A", "rejected": other + " me\n\nAssistant: B"},
    )
    assert _parts(pair_set.pairs[0]) == (front, " Because.", " Because I say so.")
    assert _parts(pair_set.pairs[1]) == (
        "\n\nHuman: hi\n\nAssistant: yes?\n\n",
        "Human: why\n\nAssistant: A",
        "Human: me\n\nAssistant: B",
    )
    with pytest.raises(BadInput, match="'chosen': the last reply is empty"):
        load({"chosen": front + " ", "rejected": front + " A"})
    with pytest.raises(BadInput, match="share no beginning up to"):
        load({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c"})


def test_transcripts_share_no_reply_and_count_several_turns(load):
    front = "\n\nHuman: hi\n\nAssistant:"
    more = "\n\nHuman: {0}\n\nAssistant: ok {0}"
    one = {"chosen": front + " a" + more.format("b"), "rejected": front + " c"}
    two = {side: front + " yes" + more.format(side) for side in ("chosen", "rejected")}
    three = {"chosen": front + " a", "rejected": front + " b"}
    pair_set = load(one, two, three)
    assert pair_set.counts["several_turns"] == 2
    assert _parts(pair_set.pairs[1]) == (
        front + " yes\n\n",
        more.format("chosen").lstrip(),
        more.format("rejected").lstrip(),
    )
    with pytest.raises(BadInput, match="'chosen': is itself the beginning of"):
        load({"chosen": front + " yes", "rejected": front + " yes" + more})


def test_conversations(load):
    a, b = Message("assistant", "A"), Message("assistant", "B")
    wanted = ((Message("user", "hi"),), (a,), (b,))
    sides = {"chosen": [reply("A")], "rejected": [reply("B")]}
    explicit = {"prompt": [user("hi")]} | sides
    assert _parts(load(explicit).pairs[0]) == wanted
    assert _parts(load(explicit | {"prompt": "hi"}).pairs[0]) == wanted
    texts = {"prompt": [user("hi")], "chosen": "A", "rejected": "B"}
    assert _parts(load(texts).pairs[0]) == wanted
    implicit = {
        "chosen": [user("hi"), reply("A")],
        "rejected": [user("hi"), reply("B")],
    }
    assert _parts(load(implicit).pairs[0]) == wanted
    for prompt in ("hi", [user("hi")]):
        repeated = load(implicit | {"prompt": prompt})
        assert _parts(repeated.pairs[0]) == wanted
        assert repeated.counts["prompt_repeated"] == 1
    system = {"role": "system", "content": "s"}
    row = {side: [system, *implicit[side]] for side in ("chosen", "rejected")}
    parts = _parts(load(row | {"prompt": "hi"}).pairs[0])
    assert parts == ((Message("system", "s"), *wanted[0]), *wanted[1:])


def test_conversations_that_part_at_a_user_message_share_no_reply(load):
    front = [user("a"), reply("b")]
    pair = load(
        {
            "chosen": [*front, user("c"), reply("d")],
            "rejected": [*front, user("e"), reply("f")],
        }
    ).pairs[0]
    assert pair.prompt == (Message("user", "a"), Message("assistant", "b"))
    assert [m.content for m in (*pair.chosen, *pair.rejected)] == ["c", "d", "e", "f"]
    whole = {"chosen": front, "rejected": [*front, user("e"), reply("f")]}
    with pytest.raises(BadInput, match="'chosen': is itself the beginning"):
        load(whole)


def test_columns_of_other_names(load):
    row = {"question": "a", "better": "b", "worse": "c", "prompt": "unused"}
    fields = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    assert _parts(load(row, fields=fields).pairs[0]) == ("a", "b", "c")
    with pytest.raises(BadInput, match="'question' is missing"):
        load({"better": "b c", "worse": "b d"}, fields=fields)
    with pytest.raises(BadInput, match="'worse' equals 'better'"):
        load(row | {"worse": "b"}, fields=fields)


def test_instructions(load):
    row = {"instruction": "Spell.", "input": "freind", "chosen": "A", "rejected": "B"}
    pairs = load(row, row | {"input": ""}).pairs
    assert [p.prompt for p in pairs] == ["Spell.\n\nfreind", "Spell."]
    assert [p.separator for p in pairs] == ["\n", "\n"]


def test_equal_sides_are_refused_or_dropped_counted_and_named(load, tmp_path):
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows = good, good | {"chosen": "c"}, good
    with pytest.raises(BadInput, match="jsonl:2: field 'rejected' equals 'chosen'"):
        load(*rows)
    pair_set = load(*rows, on_bad_rows="drop")
    assert [p.origin[-2:] for p in pair_set.pairs] == [":1", ":3"]
    assert pair_set.counts["identical"] == 1 and pair_set.counts["rows_read"] == 3
    problems = Problems("pairs", on_bad_rows="drop")
    read_pair_set(str(tmp_path / "pairs.jsonl"), problems)
    assert problems.settle() == 1 and "pairs.jsonl:2" in problems.left_out()


TEXT = {"prompt": "a", "chosen": "b", "rejected": "c"}
CHAT = {"prompt": [user("a")], "chosen": [reply("b")], "rejected": [reply("c")]}


@pytest.mark.parametrize(
    "row, wanted",
    [
        ({"prompt": "a"}, "'chosen' is missing (columns: prompt)"),
        ({"prompt": "a"}, "'rejected' is missing"),
        ({"prompt": "a", "choosen": "b", "rejected": "c"}, "did you mean 'choosen'"),
        (TEXT | {"chosen": ""}, "'chosen' is empty"),
        (TEXT | {"rejected": " \n"}, "'rejected' is empty"),
        (TEXT | {"chosen": None}, "'chosen' is null"),
        (TEXT | {"chosen": 3}, "'chosen' is a number"),
        (TEXT | {"prompt": ""}, "'prompt' is empty"),
        (TEXT | {"prompt": None}, "'prompt' is null"),
        (CHAT | {"chosen": []}, "'chosen' is an empty message list"),
        (CHAT | {"chosen": "b"}, "chosen is text, rejected is message"),
        (CHAT | {"chosen": [user("b")]}, "'chosen' after the prompt: role 'user'"),
        (CHAT | {"chosen": [reply("")]}, "content is empty"),
        (CHAT | {"chosen": [{"role": "bot", "content": "b"}]}, "unknown role 'bot'"),
        (CHAT | {"prompt": [reply("b")]}, "'prompt': role 'assistant'"),
        (CHAT | {"prompt": "other", "chosen": [user("a"), reply("b")]}, "role 'user'"),
        ({"chosen": "abc", "rejected": "xyz"}, "share no beginning"),
        ({"chosen": [user("a")], "rejected": [user("b")]}, "share no first messages"),
        (
            {"chosen": [user("a"), reply("b")], "rejected": [user("a")]},
            "'rejected': is itself the beginning of the other one",
        ),
        (CHAT | {"tools": [{"type": "function"}]}, "'tools': the chat template would"),
        (CHAT | {"chat_template_kwargs": {"a": False}}, "'chat_template_kwargs': the"),
        (CHAT | {"prompt": "a", "tools": '[{"a": 1}]'}, "chat_template.jinja"),
        ({"instruction": "", "chosen": "a", "rejected": "b"}, "'instruction' is empty"),
        ({"instruction": 3, "chosen": "a", "rejected": "b"}, "is a number"),
    ],
)
def test_bad_rows_are_named_with_line_and_field(load, row, wanted):
    with pytest.raises(BadInput) as error:
        load(row)
    assert "pairs.jsonl:1: " in str(error.value) and wanted in str(error.value)


def test_keys_of_messages_that_no_template_sees_are_counted(load):
    told = {**reply("b"), "weight": 0}
    nulls = {**reply("b"), "name": None, "tool_calls": []}
    rows = [CHAT | {"chosen": [one]} for one in (told, nulls, reply("b"))]
    empty = {"tools": [], "chat_template_kwargs": {"enable_thinking": None}}
    counts = load(*(row | empty for row in rows)).counts
    assert counts["pairs"] == 3 and counts["keys_left_out"] == 1
    # Of texts no template is asked to list tools.
    assert load(TEXT | {"tools": [1]}).counts["keys_left_out"] == 0


def test_all_defects_are_listed_at_once_and_may_be_left_out(load):
    rows = [TEXT, CHAT, TEXT | {"chosen": ""}, TEXT, {"prompt": "a"}]
    with pytest.raises(BadInput) as error:
        load(*rows)
    message = str(error.value)
    assert "4 problems in 3 rows; nothing was used" in message
    assert ":2: mixed formats: this row has prompt (message)" in message
    assert all(f":{line}: " in message for line in (2, 3, 5))
    pair_set = load(*rows, on_bad_rows="drop")
    assert pair_set.counts["malformed"] == 3
    assert pair_set.counts["rows_read"] == 5 and pair_set.counts["pairs"] == 2


@needs_shared
def test_real_transcripts_give_prompts_that_end_with_the_assistants_turn():
    source = os.fspath(SHARED / "hh_harmless_base_test.jsonl.gz")
    with pytest.raises(BadInput, match="4 problems in 4 rows"):
        load_pairs(source)
    pair_set = load_pairs(source, on_bad_rows="drop")
    counts = pair_set.counts
    assert (counts["rows_read"], counts["malformed"]) == (2312, 4)
    assert counts["pairs"] + counts["identical"] == 2308
    assert all(p.prompt.endswith("\n\nAssistant:") for p in pair_set.pairs)
    assert all(p.chosen.strip() and p.rejected.strip() for p in pair_set.pairs)


@needs_shared
def test_the_six_equal_pairs_of_a_real_set_are_found():
    source = os.fspath(SHARED / "polite_impolite.json")
    with pytest.raises(BadInput, match="6 problems in 6 rows"):
        load_pairs(source)
    pair_set = load_pairs(source, on_bad_rows="drop")
    assert pair_set.counts["identical"] == 6 and len(pair_set.pairs) == 1094
