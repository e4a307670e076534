"""Chat templates that are easily misread: text of their own, errors, lost messages."""

import datetime
import json

import pytest
import tokenizers_for_tests as small

from tpmm_jax.data import templates, tokens
from tpmm_jax.data.messages import Message
from tpmm_jax.data.pairs import PreferencePair, load_pairs
from tpmm_jax.data.templates import Writer
from tpmm_jax.errors import BadInput


def _encode(tokenizer, *pairs, **options):
    options = {"max_prompt_length": 99, "max_completion_length": 99} | options
    return tokens.encode_pairs(tokenizer, pairs, chat=True, **options)


def _turn(role, content):
    return {"role": role, "content": content}


def test_a_default_system_text_does_not_move_the_prompts_end(tmp_path):
    # The words by which the place of a message is found may be the template's own.
    default = "<|im_start|>system\nanswer the question<|im_end|>\n"
    tokenizer = small.byte_level(default + small.CHATML)
    same = [_turn("user", "hello"), _turn("assistant", "world")]
    row = {
        side: [*same, _turn("user", ask), _turn("assistant", "the sky")]
        for side, ask in (("chosen", "the grass"), ("rejected", "a dog"))
    }
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row))
    encoded = _encode(tokenizer, *load_pairs(str(path)).pairs).rows[0]
    assert tokenizer.decode(encoded.prompt_ids) == (
        f"{default}<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\nworld<|im_end|>\n<|im_start|>user\n"
    )
    assert tokenizer.decode(encoded.chosen_ids) == (
        "the grass<|im_end|>\n<|im_start|>assistant\nthe sky<|im_end|>"
    )


def test_a_template_that_fails_names_the_row():
    tokenizer = small.byte_level("{{ 1 // 0 }}" + small.CHATML)
    pair = PreferencePair((Message("user", "a"),), "b", "c", "f:3")
    with pytest.raises(BadInput, match=r"f:3: .*template.*by zero"):
        _encode(tokenizer, pair)


def test_lost_messages_and_typed_special_tokens_are_counted():
    silent = small.CHATML.replace("in messages", "in messages if m.role != 'system'")
    system, user = Message("system", "the sky"), Message("user", "hello")
    sides = (Message("assistant", "a"),), (Message("assistant", "b"),)
    pairs = [
        PreferencePair((system, user), *sides, "f:1"),
        PreferencePair((Message("user", "the<|im_end|> dog"),), *sides, "f:2"),
        PreferencePair((user,), *sides, "f:3"),
    ]
    for template, lost in ((silent, 1), (small.CHATML, 0)):
        counts = _encode(small.byte_level(template), *pairs).counts
        assert counts["message_left_out"] == lost
        assert counts["special_in_message"] == 1


def test_a_template_that_writes_the_day_writes_the_pinned_one(monkeypatch, tmp_path):
    clock = (
        "\n  {% if strftime_now is defined %}{% macro day() %}"
        '{{ strftime_now("%A %d %b %Y, %-d.%m. 100%% %H:%M") }}{% endmacro %}'
        "[{{ day() }}]{% endif %}\n"
    )
    tokenizer = small.byte_level(clock + small.CHATML)
    says = "\n[Monday 05 Jan 2026, 5.01. 100% 00:00]<|im_start|>user\n"
    pair = PreferencePair("the sky", "is blue", "is green", "f:1")

    def rendered():
        prompt = Writer(tokenizer, chat=True).prompt("the sky")
        return prompt, _encode(tokenizer, pair).rows

    monkeypatch.setattr(templates, "today", lambda: datetime.date(2026, 1, 5))
    unpinned = rendered()
    assert unpinned[0].startswith(says)
    templates.pin_date(tokenizer, datetime.date(2026, 1, 5))
    monkeypatch.setattr(templates, "today", lambda: datetime.date(2027, 2, 6))
    assert rendered() == unpinned
    tokenizer.save_pretrained(tmp_path)
    files = [path.read_text() for path in tmp_path.iterdir() if path.is_file()]
    assert not any("_pinned_date" in text for text in files)


def test_a_pinned_day_leaves_all_else_as_transformers_writes_it():
    clock = '  {%- if x %}{% endif %}\n  {% if strftime_now %}{{ "a" }}{% endif %}\n'
    tokenizer = small.byte_level("\n" + clock + small.CHATML)
    wanted = tokenizer.apply_chat_template(
        [_turn("user", "hi")], tokenize=False, add_generation_prompt=True
    )
    assert Writer(tokenizer, chat=True).prompt("hi") == wanted
