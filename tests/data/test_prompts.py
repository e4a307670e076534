"""Prompts are texts, conversations or ids; anything else is named."""

import json

import pytest
from reading import load_prompts

from tpmm_jax.data.messages import Message
from tpmm_jax.data.prompts import duplicate_prompts
from tpmm_jax.errors import BadInput

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "be kind"}
REPLY = {"role": "assistant", "content": "hello"}


@pytest.fixture
def save(tmp_path):
    def write(*rows):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_the_accepted_forms(save):
    source = save({"prompt": " keep spaces "}, {"prompt": "b"}, {"prompt": "b"})
    prompts = load_prompts(source)
    assert [p.content for p in prompts] == [" keep spaces ", "b", "b"]
    assert prompts[1].origin == f"{source}:2"
    assert duplicate_prompts(prompts) == 1
    prompts = load_prompts(save({"prompt": [USER]}, {"prompt": [SYSTEM, USER]}))
    assert prompts[1].content == (Message("system", "be kind"), Message("user", "hi"))
    assert load_prompts(save({"messages": [USER, REPLY, USER]}))
    assert load_prompts(save({"prompt_ids": [3, 1, 4]}))[0].content == (3, 1, 4)
    assert load_prompts(save({"prompt": [0]}))[0].content == (0,)
    assert load_prompts(save({"text": "a"}), field="text")[0].content == "a"


@pytest.mark.parametrize(
    "row, wanted",
    [
        ({"promt": "a"}, "columns: promt); did you mean 'promt'"),
        ({"chosen": "a", "rejected": "b"}, "looks like preference pairs"),
        ({"prompt": "  \n"}, "'prompt' is empty"),
        ({"prompt": []}, "an empty list"),
        ({"prompt": None}, "is null"),
        ({"prompt": 3}, "is a number; wanted a text"),
        ({"prompt": [True, 1]}, "is a boolean; wanted an object"),
        ({"prompt": [-1]}, "token id outside"),
        ({"prompt": [2**31]}, "token id outside"),
        ({"messages": [USER, REPLY]}, "last role is 'assistant'; wanted 'user'"),
        ({"prompt": [REPLY]}, "'assistant', where 'user' was expected"),
        ({"prompt": [SYSTEM]}, "last role is 'system'"),
        ({"prompt": [USER, SYSTEM, USER]}, "'system', where 'assistant' was expected"),
        ({"prompt": [USER, USER]}, "'user', where 'assistant' was expected"),
        ({"prompt": [{"role": "human", "content": "a"}]}, "unknown role 'human'"),
        ({"prompt": [{"role": "user"}]}, "'prompt[0]': lacks content"),
        ({"prompt": [{"role": "user", "content": ""}]}, "content is empty"),
        ({"prompt": [{"role": "user", "content": ["a"]}]}, "content is a list"),
        ({"prompt": [USER | {"tool_calls": [1]}]}, "tool_calls, which is not"),
        ({"prompt": [USER | {"thinking": "so"}]}, "thinking, which is not"),
        ({"prompt": [USER], "tools": [{"a": 1}]}, "'tools': the chat template"),
        ({"messages": [USER], "chat_template_kwargs": {"a": 1}}, "_kwargs': the chat"),
        ({"prompt": ["a", "b"]}, "'prompt[0]': is a text"),
    ],
)
def test_bad_rows_are_named_with_line_and_field(save, row, wanted):
    source = save(row)
    with pytest.raises(BadInput) as error:
        load_prompts(source)
    assert f"{source}:1: " in str(error.value) and wanted in str(error.value)


def test_keys_of_messages_that_no_template_sees_are_told(save, caplog):
    load_prompts(save({"prompt": [USER | {"name": None}], "tools": None}))
    load_prompts(save({"prompt": "a", "tools": [{"type": "function"}]}))
    assert not caplog.text
    load_prompts(save({"prompt": [USER | {"name": "Bob"}]}, {"prompt": [USER]}))
    assert "more than role and content, which is left out: 1 (name)" in caplog.text


def test_defects_of_every_layer_are_listed_together(save, tmp_path):
    source = save({"prompt": "a"}, {"prompt": ""}, {"prompt": "b"}, {"prompt": [USER]})
    with open(source, "a") as file:
        file.write("not json\n")
    with pytest.raises(BadInput) as error:
        load_prompts(source)
    message = str(error.value)
    assert ":2: field 'prompt' is empty" in message
    assert ":4: mixed formats: this row has messages, while 2 of 3" in message
    assert ":5: not JSON" in message
    prompts = load_prompts(source, on_bad_rows="drop")
    assert [p.content for p in prompts] == ["a", "b"]
