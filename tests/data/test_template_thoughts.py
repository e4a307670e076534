"""Answers are taught behind the thought that a generation prompt opens, never in it."""

import json

import pytest
import tokenizers_for_tests as small
from published import (
    COMMAND,
    GEMMA,
    LLAMA3,
    QWEN3,
    QWEN3_THINKING,
    QWEN3_WITHOUT,
    QWQ,
    R1,
    tokenizer_of,
)
from reading import encode
from transformers import AutoTokenizer

from tpmm_jax.data.messages import Message
from tpmm_jax.data.pairs import PreferencePair
from tpmm_jax.data.prompt_tokens import encode_prompts
from tpmm_jax.errors import BadInput

THOUGHT = "<think>\nthe sky\n</think>\n\n"


def _encode(template, chosen, rejected="no", prompt="hello"):
    tokenizer = tokenizer_of(template)
    codec = small.codec(tokenizer, chat=True)
    found = encode(codec, [PreferencePair(prompt, chosen, rejected, "f:3")])
    row = found.rows[0]
    # What is taught follows what sampling continues.
    assert row.prompt_ids == encode_prompts(codec, [prompt])[0].ids
    sides = (row.prompt_ids, row.chosen_ids, row.rejected_ids)
    return *(tokenizer.decode(ids) for ids in sides), found.counts


def _turns(*contents):
    roles = ("assistant", "user")
    return tuple(Message(roles[n % 2], text) for n, text in enumerate(contents))


OPEN = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n\n"
TAUGHT = [
    (QWEN3, "yes", OPEN, f"{EMPTY}yes"),
    (QWEN3, f"{THOUGHT}yes", OPEN, f"{THOUGHT}yes"),
    (QWEN3_WITHOUT, "yes", OPEN + EMPTY, "yes"),
    (QWEN3_THINKING, "yes", f"{OPEN}<think>\n", "\n</think>\n\nyes"),
    (
        QWEN3_THINKING,
        f"{THOUGHT}yes",
        f"{OPEN}<think>\n",
        "the sky\n</think>\n\nyes",
    ),
]


@pytest.mark.parametrize("template, answer, prompt, wanted", TAUGHT)
def test_an_answer_stands_behind_its_thought(template, answer, prompt, wanted):
    got, chosen, _, counts = _encode(template, answer)
    assert (got, chosen) == (prompt, f"{wanted}<|im_end|>")
    assert counts["message_left_out"] == 0


@pytest.mark.parametrize("template", [QWQ, R1])
@pytest.mark.parametrize("answer", ["yes", f"{THOUGHT}yes", _turns("yes", "a", "b")])
def test_an_answer_inside_an_open_thought_is_refused_with_what_helps(template, answer):
    prompt = "hello" if isinstance(answer, str) else (Message("user", "hello"),)
    rejected = "no" if isinstance(answer, str) else _turns("no")
    wanted = (
        r"f:3: the answer would be taught inside a thought.*opens <think>.*without "
        r"</think>; put a chat_template\.jinja into the model's directory"
    )
    with pytest.raises(BadInput, match=wanted):
        _encode(template, answer, rejected, prompt)


def test_a_template_that_closes_the_thought_helps():
    _, chosen, rejected, counts = _encode(
        QWQ.replace("<think>\n' }}", "<think>\n\n</think>\n\n' }}"), "yes"
    )
    assert (chosen, rejected) == ("yes<|im_end|>", "no<|im_end|>")
    assert counts["template_rewrote_prompt"] == 2 and counts["message_left_out"] == 0


def test_a_chat_template_beside_the_model_is_the_one_that_counts(tmp_path):
    tokenizer_of(QWQ).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": QWQ}))
    (tmp_path / "chat_template.jinja").write_text(QWEN3_WITHOUT)
    codec = small.codec(AutoTokenizer.from_pretrained(tmp_path), chat=True)
    assert encode(codec, [PreferencePair("hello", "yes", "no", "f:1")]).rows


# Answers as they are, behind an open thought.
KEEPS = small.CHATML.replace("assistant\n{%", "assistant\n<think>\n{%")


@pytest.mark.parametrize("begin", ["<think>\n", "<think>", ""])
def test_a_template_that_keeps_thoughts_and_answers_that_hold_them_help(begin):
    sides = (f"{begin}{text}</think>yes" for text in ("the sky", "a dog"))
    prompt, chosen, rejected, counts = _encode(KEEPS, *sides)
    assert prompt == f"{OPEN}<think>\n"
    assert chosen == "the sky</think>yes<|im_end|>"
    assert rejected == "a dog</think>yes<|im_end|>"
    # The line break that the answer lacks is the template's.
    assert counts["message_left_out"] == (begin == "<think>")


def test_a_tag_that_only_the_vocabulary_closes_counts():
    with pytest.raises(BadInput, match="inside a thought"):
        _encode(KEEPS, "yes")
    plain = small.codec(small.byte_level(KEEPS), chat=True)
    assert encode(plain, [PreferencePair("hello", "yes", "no", "f:1")]).rows


def test_a_first_turn_needs_its_own_end_of_thought():
    asked, no = (Message("user", "hello"),), _turns("x</think>no")
    for first, fine in (("a", False), ("x</think>a", True)):
        turns = _turns(first, "b", "y</think>c")
        if fine:
            assert _encode(KEEPS, turns, no, asked)[1].startswith(
                "x</think>a<|im_end|>"
            )
        else:
            with pytest.raises(BadInput, match="inside a thought"):
                _encode(KEEPS, turns, no, asked)


@pytest.mark.parametrize(
    "template", [GEMMA, LLAMA3, COMMAND.replace("<|START_THINKING|>", "")]
)
def test_the_opening_of_a_turn_is_no_thought(template):
    _, chosen, rejected, _ = _encode(template, "yes")
    assert chosen.startswith("yes<") and rejected.startswith("no<")


def test_other_spellings_of_a_thought_count():
    with pytest.raises(BadInput, match=r"opens <\|START_THINKING\|>"):
        _encode(COMMAND, "yes")
    bare = QWQ.replace("<think>", "[THINK]").replace("</think>", "[/THINK]")
    with pytest.raises(BadInput, match=r"opens \[THINK\]"):
        _encode(bare, "yes")


def test_each_side_is_looked_for_behind_the_prompt():
    lost = small.CHATML.replace(
        "{{ m['content'] }}", "{{ m['content'] if m.role == 'user' else 'x' }}"
    )
    # An answer that the template leaves out, though the question holds its words.
    pair = PreferencePair("yes or no", "yes", "no", "f:1")
    codec = small.codec(
        tokenizer_of(lost.replace("'x'", "loop.index~'x'*m.content|length")), chat=True
    )
    found = encode(codec, [pair])
    assert found.counts["message_left_out"] == 1
    # Both sides begin with what the prompt ends with.
    _, _, _, counts = _encode(QWEN3_THINKING, f"{THOUGHT}yes", f"{THOUGHT}no")
    assert counts["message_left_out"] == 0
