"""Every row of docs/data.md's table of columns and shapes, in a run and check_data."""

import io
import json
import pathlib
import re
import sys

import pytest

from tpmm_jax.commands import check_data
from tpmm_jax.config import EvaluationConfig
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.prepare import load_rows
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.prompts import make_schedule

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / name) for name in ("data", "loop")]
import tiny_run  # noqa: E402
import tokenizers_for_tests as small  # noqa: E402

DOCS = (HERE.parent / "docs" / "data.md").read_text(encoding="utf-8")
CHATML = small.byte_level(small.CHATML)
COUNT = 8  # of the rows of a file


def user(text):
    return {"role": "user", "content": text}


def reply(text):
    return {"role": "assistant", "content": text}


def pair(**more):
    return {"prompt": "the sky is", "chosen": " blue", "rejected": " red"} | more


def asked(**more):
    return {"prompt": "the sky is"} | more


def bare(**more):
    return {"chosen": "the sky is blue", "rejected": "the sky is red"} | more


def told(**more):
    sides = {"chosen": [reply("b")], "rejected": [reply("c")]}
    return {"prompt": [user("the sky")]} | sides | more


TURNS = [user("hello"), reply("world")]
PRINTED = "[{'role': 'user', 'content': 'a'}\n {'role': 'user', 'content': 'b'}]"
CHAT, MEANT = {"chat": True}, {"implicit_prompt": True}
PARSED = {"parse_json": True}
SYSTEM = "\nBe kind.\nuser\nthe sky is"
HISTORY = "user\nhello\nassistant\nworld\nuser\nthe sky is"

# Of each row of the table: (row of a file, options, what is said where it is refused,
# the columns that are not read, what its prompt's tokens say).
CASES = {
    "`system`, `system_prompt` or `system_message` beside the prompt, with "
    "`data.chat=true`": [
        (pair(system="Be kind."), CHAT, "", [], SYSTEM),
        (pair(system_prompt="Be kind."), CHAT, "", [], SYSTEM),
        (asked(system_message="Be kind."), CHAT, "", [], SYSTEM)],
    "the same without a chat template": [
        (pair(system="Be kind."), {}, "'system'", [], ""),
        (asked(system_prompt="Be kind."), {}, "'system_prompt'", [], "")],
    "`history`, [question, answer] pairs or messages, with `data.chat=true`": [
        (pair(history=[["hello", "world"]]), CHAT, "", [], HISTORY),
        (pair(history=TURNS), CHAT, "", [], HISTORY),
        (asked(history=TURNS), CHAT, "", [], HISTORY)],
    "`history` without a chat template": [
        (pair(history=TURNS), {}, "'history'", [], ""),
        (asked(history=[["a", "b"]]), {}, "'history'", [], "")],
    "`history` that is a text, or whose turns are out of order": [
        (pair(history="hello"), CHAT, "'history' is a text", [], None),
        (asked(history=[user("a")]), CHAT, "'history': the last role", [], None)],
    'system texts or histories of other names, `data.fields={"system": "persona"}`': [
        (pair(persona="Be kind."), CHAT | {"fields": {"system": "persona"}}, "", [],
         SYSTEM),
        (asked(said=TURNS), CHAT | {"fields": {"history": "said"}}, "", [], HISTORY)],
    "another system message than that of the prompt's messages": [
        (told(prompt=[{"role": "system", "content": "a"}, user("b")], system="c"), CHAT,
         "different system messages", [], None)],
    "`context`, `document`, `passage`, `question`, `instruction`, `input` or `query` "
    "beside a prompt that holds its text": [
        (pair(context="The  SKY"), {}, "", ["context"], "the sky is"),
        (asked(question="the sky is"), {}, "", ["question"], "the sky is")],
    "the same beside a prompt that does not hold it": [
        (row(**{name: "the sea"}), {}, f"'{name}'", [], "")
        for name in ("context", "document", "passage", "question", "instruction",
                     "input", "query") for row in (pair, asked)],
    "`messages` or `conversations` beside a prompt, whose words of system and user the "
    "row holds": [
        (pair(messages=[user("the sky is"), reply("blue")]), {}, "", ["messages"],
         "the sky is")],
    "`messages` or `conversations` that say more": [
        (pair(messages=[*TURNS, user("the sky is")]), {}, "'messages'", [], ""),
        (asked(conversations=TURNS), {}, "'conversations'", [], "")],
    "a question or context beside `chosen` and `rejected` without a prompt, not in "
    "their common beginning": [
        (bare(question="What?"), {}, "--fields prompt=question", [], ""),
        (bare(context="What?"), {}, "--fields prompt=context", [], ""),
        (bare(chosen="red", query="What?"), {}, "--fields prompt=query", [], "")],
    "the same with `data.implicit_prompt=true`": [
        (bare(question="What?"), MEANT, "", ["question"], "the sky is")],
    "texts without a prompt that are no transcripts, with `data.chat=true`": [
        (bare(), CHAT, "begins as its other side does", [], "")],
    "the same with `data.implicit_prompt=true` ": [
        (bare(), CHAT | MEANT, "", [], "user\nthe sky is")],
    "`tools`, `functions` or `chat_template_kwargs` beside messages, or beside texts "
    "with `data.chat=true`": [
        (told(tools=[{"a": 1}]), CHAT, "'tools'", [], ""),
        (pair(functions=[{"a": 1}]), CHAT, "'functions'", [], ""),
        (asked(chat_template_kwargs={"a": 1}), CHAT, "'chat_template_kwargs'", [], "")],
    "the same beside texts without a chat template": [
        (pair(tools=[{"a": 1}]), {}, "", ["tools"], "the sky is"),
        (asked(tools=[{"a": 1}]), {}, "", ["tools"], "the sky is")],
    "`images`, `videos` or `audios`": [
        (pair(images=["a.png"]), {}, "'images'", [], ""),
        (asked(audios=["a"]), CHAT, "'audios'", [], "")],
    "any of these that says nothing": [
        (pair(system=" ", context=None, images=[], tools=[None]), {}, "", [],
         "the sky is"),
        (asked(history=[], question="", chat_template_kwargs={"a": None}), CHAT, "", [],
         "user\nthe sky is")],
    "any of these in `data.ignore_columns`": [
        (pair(system="a", images=["b"]), {"ignore_columns": ("system", "images")}, "",
         ["system", "images"], "the sky is"),
        (asked(context="a"), {"ignore_columns": ("context",)}, "", ["context"],
         "the sky is")],
    "any of these beside `prompt_ids`": [
        ({"prompt_ids": [3, 4], "system": "a", "question": "b"}, {}, "",
         ["system", "question"], "")],
    "any other column": [
        (pair(id=1, source="x"), {}, "", ["id", "source"], "the sky is"),
        (asked(chosen="a", id=1), {}, "", ["chosen", "id"], "the sky is")],
    "messages stored as text, JSON or a printed Python list, in `prompt`, `messages`, "
    "`chosen`, `rejected` or `history`": [
        (pair(prompt=json.dumps(TURNS[:1])), {}, "'prompt'", [], ""),
        (pair(chosen=str(TURNS[1:])), {}, "'chosen'", [], ""),
        (pair(history=json.dumps(TURNS)), CHAT, "'history'", [], ""),
        ({"messages": json.dumps(TURNS[:1])}, CHAT, "'messages'", [], "")],
    "the same with `data.parse_json=true`": [
        (pair(prompt=json.dumps(TURNS[:1])), CHAT | PARSED, "", [], "user\nhello"),
        ({"messages": str(TURNS[:1])}, CHAT | PARSED, "", [], "user\nhello")],
    "the same with `data.parse_json=false`": [
        (pair(prompt=json.dumps(TURNS[:1])), {"parse_json": False}, "", [],
         '[{"role": "user"')],
    'a prompt that is a list of texts stored as text (`["q"]`)': [
        (pair(prompt='["q"]', chosen='["a"]'), {}, "'chosen'", [], ""),
        (pair(prompt='["the sky"]', chosen='["a"]'), PARSED, "", [], "the sky"),
        (asked(prompt="['the sky']"), PARSED, "", [], "the sky"),
        (asked(prompt='["q", "r"]'), PARSED, "a list of 2 texts", [], None)],
    'an answer that is other JSON, such as `["Paris"]`': [
        (pair(chosen='["Paris"]'), {}, "", [], "the sky is")],
    "messages that were printed and cannot be read back (a NumPy array)": [
        (pair(chosen=PRINTED), {}, "were printed", [], None),
        (asked(prompt=PRINTED), {}, "were printed", [], None)],
}  # fmt: skip
ALL = [(name, number) for name, some in CASES.items() for number in range(len(some))]


def test_the_documentation_has_these_rows():
    table = DOCS.partition("| column or shape |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (.*?) \| ", table, re.MULTILINE)
    assert [name.strip() for name in CASES] == [row.strip() for row in rows]


def flags(data):
    """The options of check_data that say the same."""
    found = ["--chat" if data.get("chat") else "--no-chat"]
    for name, value in data.items():
        option = f"--{name.replace('_', '-')}"
        if name == "fields":
            found += [option, ",".join(f"{p}={c}" for p, c in value.items())]
        elif name == "ignore_columns":
            found += [option, ",".join(value)]
        elif name != "chat":
            found.append(option if value else f"--no-{option[2:]}")
    return found


def run_reads(path, data, folder):
    """What a run says, and the prompts that it takes of the file."""
    said = io.StringIO()
    console = RunConsole(said, said)
    codec = small.codec(CHATML, **data)
    if "rejected" in path.read_text():
        rows = load_rows(
            str(path),
            DataConfig(pairs=str(path), **data),
            codec,
            note=console.note,
            warn=console.warn,
        )
        return said.getvalue(), [row.prompt_ids for row in rows]
    config = tiny_run.get_config(
        data=DataConfig(pairs="pairs", eval_prompts=str(path), **data),
        evaluation=EvaluationConfig(num_prompts=COUNT),
    )
    schedule = make_schedule(config, codec, folder, console)
    return said.getvalue(), schedule.sets["evaluation"].ids


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    CHATML.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name, number", ALL, ids=[f"{n[:40]} {i}" for n, i in ALL])
def test_a_run_and_check_data_agree(name, number, tmp_path, capsys, tokenizer):
    row, data, wanted, unread, prompt = CASES[name][number]
    path = tmp_path / "rows.jsonl"
    rows = [row] * COUNT
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    is_pair = "rejected" in row
    options = [*flags(data), "--model", str(tokenizer), "--json"]
    options += [] if is_pair else ["--prompts"]
    code = check_data.main([str(path), *options])
    found = json.loads(capsys.readouterr().out)
    errors = found["errors"]
    assert code == (2 if wanted else 0)
    if not wanted:
        said, ids = run_reads(path, data, tmp_path)
        texts = small.codec(CHATML).decode(ids[0])
        assert found["unread_columns"] == unread and prompt in texts
        line = f"not read: {', '.join(unread)}"
        assert (line in " ".join(said.split())) == bool(unread)
        kept = found["counts"]["rows_kept" if is_pair else "prompts_kept"]
        assert kept == len(ids) == COUNT and errors == []
        return
    # Of a whole file one error, that dropping rows does not lift; else one of each row.
    whole = prompt is not None
    for on_bad_rows in ("refuse", "drop") if whole else ("refuse",):
        with pytest.raises(BadInput) as error:
            run_reads(path, data | {"on_bad_rows": on_bad_rows}, tmp_path)
        assert wanted in str(error.value)
    assert wanted in "".join(one["reason"] for one in errors)
    assert found["counts"]["refused_whole"] == (len(errors) if whole else 0)
    assert errors[0]["line"] == 1 and errors[0]["field"] in row
