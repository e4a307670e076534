"""Chat templates that are easily misread: text of their own, errors, lost messages."""

import json

import pytest
import tokenizers_for_tests as small

from tpmm_jax.data import tokens
from tpmm_jax.data.messages import Message
from tpmm_jax.data.pairs import PreferencePair, load_pairs
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
