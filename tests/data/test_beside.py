"""Columns beside a prompt are honoured, refused by name, or listed: never dropped."""

import json

import datasets
import pytest
import tokenizers_for_tests as small
from reading import load_pairs

from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.messages import Message
from tpmm_jax.data.prepare import prepare_pairs, prepare_prompts
from tpmm_jax.data.problems import Problems
from tpmm_jax.data.prompts import read_prompt_set
from tpmm_jax.errors import BadInput

CHATML = small.byte_level(small.CHATML)
TEXT = {"prompt": "the sky is", "chosen": " blue", "rejected": " green"}
BARE = {"chosen": "the sky is blue", "rejected": "the sky is green"}
HH = "\n\nHuman: hi\n\nAssistant:"
SYSTEM, USER, REPLY = (
    Message("system", "Be kind."),
    Message("user", "hello"),
    Message("assistant", "world"),
)


def user(text):
    return {"role": "user", "content": text}


def reply(text):
    return {"role": "assistant", "content": text}


CHAT = {"prompt": [user("a")], "chosen": [reply("b")], "rejected": [reply("c")]}


@pytest.fixture
def prepare(tmp_path):
    """Reads and encodes rows as a run does; problems are settled."""

    def run(*rows, prompts=False, table=False, **options):
        path = tmp_path / ("rows" if table else "rows.jsonl")
        if table:
            datasets.Dataset.from_list(list(rows)).save_to_disk(str(path))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        codec = small.codec(CHATML, **options)
        read = prepare_prompts if prompts else prepare_pairs
        found = read(str(path), DataConfig(**options), codec)
        found.problems.settle()
        return found

    return run


def refusal(prepare, *rows, **options):
    """What a source is refused with: the whole of it, even where bad rows drop."""
    with pytest.raises(BadInput) as error:
        prepare(*rows, **options)
    with pytest.raises(BadInput):
        prepare(*rows, on_bad_rows="drop", **options)
    return str(error.value)


@pytest.mark.parametrize("table", [False, True], ids=["jsonl", "table"])
@pytest.mark.parametrize("column", ["system", "system_prompt", "persona"])
def test_a_system_text_becomes_the_system_message(prepare, column, table):
    row = TEXT | {column: "Be kind."}
    fields = {"system": column} if column == "persona" else {}
    options = {"fields": fields, "table": table}
    found = prepare(row, TEXT | {column: None}, chat=True, **options)
    assert found.pairs[0].prompt == (SYSTEM, Message("user", "the sky is"))
    assert found.pairs[1].prompt == "the sky is"
    assert found.counts["with_system"] == 1 and found.unread == []
    written = small.codec(CHATML).decode(found.rows[0].prompt_ids)
    assert written.startswith("system\nBe kind.\nuser\nthe sky is")
    said = refusal(prepare, TEXT | {column: None}, row, **options)
    assert f"field '{column}': becomes a message" in said and "data.chat=true" in said
    assert ("rows.jsonl:2: " in said) != table


def test_prompts_take_the_same_columns(prepare):
    row = {"prompt": "hello", "system": "Be kind.", "history": [["hello", "world"]]}
    found = prepare(row, {"prompt": "b", "id": 3}, prompts=True, chat=True)
    assert found.prompts[0].content == (SYSTEM, USER, REPLY, USER)
    assert found.unread == ["id"] and len(found.encoded) == 2
    assert "needed" in refusal(prepare, row, prompts=True)
    found = prepare(row, prompts=True, ignore_columns=("system", "history"))
    assert found.prompts[0].content == "hello"
    assert found.unread == ["system", "history"]
    row = {"prompt": [user("hello")], "persona": "Be kind."}
    options = {"prompts": True, "chat": True, "fields": {"system": "persona"}}
    assert prepare(row, **options).prompts[0].content == (SYSTEM, USER)
    said = refusal(prepare, {"prompt": "hello", "context": "x"}, prompts=True)
    assert "field 'context': says something about the prompt" in said
    assert "field 'tools': the chat" in refusal(
        prepare, {"prompt": "a", "tools": [{"a": 1}]}, prompts=True, chat=True
    )
    # Token ids are complete as they are.
    ids = {"prompt_ids": [3, 4], "question": "q", "system": "s"}
    found = prepare(ids, prompts=True)
    assert found.prompts[0].content == (3, 4)
    assert found.unread == ["question", "system"]


@pytest.mark.parametrize(
    "history",
    [
        [["hello", "world"]],
        [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "world"},
        ],
    ],
    ids=["pairs", "messages"],
)
def test_history_becomes_earlier_turns(prepare, history):
    row = TEXT | {"prompt": "hello", "history": history, "system": "Be kind."}
    found = prepare(row, row | {"history": []}, chat=True)
    assert found.pairs[0].prompt == (SYSTEM, USER, REPLY, USER)
    assert found.pairs[1].prompt == (SYSTEM, USER)
    assert found.counts["with_history"] == 1
    row = CHAT | {"history": history}
    assert prepare(row, chat=True).pairs[0].prompt[:2] == (USER, REPLY)
    held = row | {"prompt": [*map(dict, [user("hello"), reply("world"), user("a")])]}
    assert len(prepare(held, chat=True).pairs[0].prompt) == 3


@pytest.mark.parametrize(
    "more, wanted",
    [
        ({"history": "what was said"}, "'history' is a text; wanted a message list"),
        ({"history": [["a"]]}, "'history[0]': is a list"),
        ({"history": [user("a")]}, "'history': the last role is 'user'"),
        ({"system": 3}, "'system' is a number; wanted a text"),
        ({"prompt": [{"role": "system", "content": "x"}, user("a")],
          "system": "y"}, "different system messages"),
    ],
)  # fmt: skip
def test_earlier_turns_that_cannot_be_read_are_faults_of_rows(prepare, more, wanted):
    row = CHAT | more
    with pytest.raises(BadInput, match=r"jsonl:1: field ") as error:
        prepare(row, chat=True)
    assert wanted in str(error.value)
    assert len(prepare(CHAT, row, chat=True, on_bad_rows="drop").rows) == 1


def test_a_transcript_takes_a_system_message(prepare):
    row = {"chosen": HH + " a", "rejected": HH + " b", "system": "Be kind."}
    pair = prepare(row, chat=True).pairs[0]
    assert pair.prompt == (SYSTEM, Message("user", "hi"))
    assert pair.chosen == (Message("assistant", "a"),)


@pytest.mark.parametrize("column", ["context", "input", "question", "documents"])
def test_what_is_not_in_the_prompt_is_refused_by_name(prepare, column):
    value = ["Snow is white."] if column == "documents" else "Snow is white."
    row = TEXT | {column: value}
    said = refusal(prepare, TEXT, TEXT | {column: None}, row, row)
    assert f"rows.jsonl:3: field '{column}' (and in 1 more rows): says" in said
    assert f"--fields system={column}" in said
    inside = row | {"prompt": "snow is\n WHITE. So the sky is"}
    found = prepare(inside)
    assert found.unread == [column]
    assert prepare(row, ignore_columns=(column,)).unread == [column]
    fields = {"system": column}
    if column != "documents":
        assert prepare(row, fields=fields, chat=True).counts["with_system"] == 1


def test_messages_may_repeat_the_prompt_and_the_answer(prepare):
    both = [user("the sky is"), reply("blue")]
    assert prepare(TEXT | {"messages": both}).unread == ["messages"]
    said = refusal(prepare, TEXT | {"messages": [user("first"), *both]})
    assert "field 'messages': says something" in said


def test_columns_for_a_template_or_for_images(prepare):
    tools = {"tools": [{"type": "function"}]}
    assert prepare(TEXT | tools).unread == ["tools"]
    for row, chat in ((TEXT, True), (CHAT, True), (CHAT, False)):
        assert "field 'tools': the chat" in refusal(prepare, row | tools, chat=chat)
    assert "field 'images': is nothing" in refusal(prepare, TEXT | {"images": ["a"]})
    empty = {"images": [], "tools": None, "context": "", "system": " ", "history": []}
    found = prepare(TEXT | empty, chat=True)
    assert len(found.rows) == 1 and found.unread == []


@pytest.mark.parametrize("table", [False, True], ids=["jsonl", "table"])
def test_unread_columns_are_listed_once(prepare, table):
    row = TEXT | {"id": 1, "source": "x", "score_chosen": 2, "score_rejected": 1}
    assert prepare(row, row, table=table).unread == ["id", "source"]
    row = {"question": "a", "better": "b", "worse": "c", "prompt": "not this"}
    fields = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    assert prepare(row, fields=fields, table=table).unread == ["prompt"]
    row = {"instruction": "a", "input": "b", "chosen": "c", "rejected": "d"}
    assert prepare(row, table=table).unread == []


@pytest.mark.parametrize(
    "column", ["question", "input", "query", "context", "messages", "conversations"]
)
@pytest.mark.parametrize("bare", ["texts", "unlike", "messages"])
def test_a_question_beside_answers_without_a_prompt_is_refused(prepare, column, bare):
    rows = {
        "texts": BARE,
        "unlike": {"chosen": "red", "rejected": "blue"},
        "messages": {
            side: [user("the sky is"), reply(side)] for side in ("chosen", "rejected")
        },
    }
    asked = "What colour?"
    value = [user(asked), reply("red")] if column in ("messages",) else asked
    row = rows[bare] | {column: value}
    chat = bare == "messages"
    said = refusal(prepare, rows["messages" if chat else "texts"], row, chat=chat)
    assert f"rows.jsonl:2: field '{column}': is not in what chosen" in said
    assert f"--fields prompt={column}" in said and "1 problem" in said
    if bare != "unlike":
        assert prepare(row, implicit_prompt=True, chat=chat).unread == [column]
        held = row | {column: [user("The sky")] if column == "messages" else "The sky"}
        assert prepare(held, chat=chat).pairs[0].implicit


def test_a_common_beginning_is_no_question_under_a_chat_template(prepare):
    said = refusal(prepare, BARE, BARE, chat=True)
    assert "field 'chosen' (and in 1 more rows): begins as its other side" in said
    assert len(prepare(BARE, chat=True, implicit_prompt=True).rows) == 1
    assert len(prepare(BARE).rows) == 1
    transcript = {"chosen": HH + " a", "rejected": HH + " b"}
    assert len(prepare(transcript, chat=True).rows) == 1


ASKED, SAID = [user("hi")], [reply("a")]


@pytest.mark.parametrize("dump", [json.dumps, str], ids=["json", "printed"])
def test_conversations_stored_as_text(prepare, dump):
    stored = {
        "prompt": dump(ASKED),
        "chosen": dump(SAID),
        "rejected": dump([reply("b")]),
    }
    said = refusal(prepare, stored)
    assert "field 'prompt': holds a conversation as text" in said
    assert "data.parse_json=true" in said and "3 problems" in said
    pair = prepare(stored, parse_json=True, chat=True).pairs[0]
    assert pair.prompt == (Message("user", "hi"),)
    assert pair.chosen == (Message("assistant", "a"),)
    assert prepare(stored, parse_json=False).pairs[0].prompt == dump(ASKED)
    listed = {"prompt": dump(["q"]), "chosen": dump(["a"]), "rejected": dump(["b"])}
    assert "'chosen': holds a conversation" in refusal(prepare, listed)
    pair = prepare(listed, parse_json=True).pairs[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == ("q", "a", "b")
    with pytest.raises(BadInput, match="'prompt' holds a list of 2 texts"):
        prepare(listed | {"prompt": dump(["q", "r"])}, parse_json=True)
    row = TEXT | {"history": dump([["hello", "world"]])}
    assert "'history': holds" in refusal(prepare, row, chat=True)
    assert len(prepare(row, parse_json=True, chat=True).pairs[0].prompt) == 3


def test_prompts_stored_as_text(prepare):
    for row, content in (
        ({"prompt": json.dumps(ASKED)}, (Message("user", "hi"),)),
        ({"messages": str(ASKED)}, (Message("user", "hi"),)),
        ({"prompt": '["q"]'}, "q"),
        ({"prompt_ids": "[3, 4]"}, (3, 4)),
    ):
        assert "holds a conversation as text" in refusal(prepare, row, prompts=True)
        options = {"prompts": True, "parse_json": True, "chat": True}
        assert prepare(row, **options).prompts[0].content == content


def test_other_json_is_a_text(prepare):
    answers = ('["Paris"]', '[{"city": "Paris"}]', '{"from": "a", "to": "b"}', "[1, 2]")
    for answer in (*answers, "[unclear] maybe", "{{ x }}", "[" * 90, "[1], 2: [3"):
        found = prepare(TEXT | {"chosen": answer}, parse_json=None)
        assert found.pairs[0].chosen == answer
    printed = (
        "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b'}]"
    )
    with pytest.raises(BadInput, match="looks like messages that were printed"):
        prepare(TEXT | {"chosen": printed})


def test_columns_that_are_named_must_be_there(prepare):
    said = refusal(prepare, TEXT, fields={"system": "persona"}, chat=True)
    assert "field 'persona' is missing" in said
    with pytest.raises(BadInput, match="not a part of a row"):
        DataConfig(pairs="p", fields={"sytem": "a"}).validate()
    with pytest.raises(BadInput, match="which is not set"):
        DataConfig(prompts="p", fields={"chosen": "a"}).validate()
    DataConfig(prompts="p", fields={"system": "a"}).validate()
    DataConfig(pairs="p", fields={"prompt": "history"}).validate()


def test_readers_alone_refuse_the_same(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(TEXT | {"context": "x"}) + "\n")
    with pytest.raises(BadInput, match="'context'"):
        load_pairs(str(path), on_bad_rows="drop")
    problems = Problems(str(path), on_bad_rows="drop")
    read_prompt_set(str(path), problems)
    assert problems.refused
