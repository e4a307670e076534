"""Chat templates that are easily misread: text of their own, errors, lost messages."""

import datetime
import json

import pytest
import tokenizers_for_tests as small
from reading import encode, load_pairs

from tpmm_jax.data import codec
from tpmm_jax.data._templates import Writer
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.messages import Message
from tpmm_jax.data.pairs import PreferencePair
from tpmm_jax.data.prompt_tokens import encode_prompts
from tpmm_jax.errors import BadInput


def _encode(tokenizer, *pairs, **options):
    return encode(small.codec(tokenizer, **{"chat": True} | options), pairs)


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


def test_a_template_that_writes_the_day_writes_the_codecs(monkeypatch):
    clock = (
        "\n  {% if strftime_now is defined %}{% macro day() %}"
        '{{ strftime_now("%A %d %b %Y, %-d.%m. 100%% %H:%M") }}{% endmacro %}'
        "[{{ day() }}]{% endif %}\n"
    )
    tokenizer = small.byte_level(clock + small.CHATML)
    says = "\n[Monday 05 Jan 2026, 5.01. 100% 00:00]<|im_start|>user\n"
    pair = PreferencePair("the sky", "is blue", "is green", "f:1")

    def rendered(date=None):
        made = codec.make_codec(None, tokenizer, DataConfig(chat=True), date)
        return Writer(made).prompt("the sky"), encode(made, [pair]).rows

    monkeypatch.setattr(codec, "today", lambda: datetime.date(2026, 1, 5))
    without = rendered()
    assert without[0].startswith(says)
    monkeypatch.setattr(codec, "today", lambda: datetime.date(2027, 2, 6))
    assert rendered(datetime.date(2026, 1, 5)) == without != rendered()


def test_a_codecs_day_leaves_all_else_as_transformers_writes_it():
    clock = '  {%- if x %}{% endif %}\n  {% if strftime_now %}{{ "a" }}{% endif %}\n'
    tokenizer = small.byte_level("\n" + clock + small.CHATML)
    wanted = tokenizer.apply_chat_template(
        [_turn("user", "hi")], tokenize=False, add_generation_prompt=True
    )
    assert Writer(small.codec(tokenizer, chat=True)).prompt("hi") == wanted


def _decoded(tokenizer, rows):
    return [
        tuple(map(tokenizer.decode, (row.prompt_ids, row.chosen_ids, row.rejected_ids)))
        for row in rows
    ]


HI = "\n\nHuman: hello\n\nAssistant:"
MORE = "\n\nHuman: and the grass?\n\nAssistant: It is"


@pytest.mark.parametrize("explicit", [True, False])
def test_transcripts_are_messages_to_a_template(tmp_path, explicit):
    tokenizer = small.byte_level(small.CHATML)
    says = {"chosen": f" the sky{MORE} green.", "rejected": " a dog"}
    parts = {"chosen": f" ok{MORE} green.", "rejected": f" ok{MORE} blue."}
    rows = [{s: HI + text for s, text in row.items()} for row in (says, parts)]
    if explicit:
        rows = [says | {"prompt": HI}, parts | {"prompt": HI}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = load_pairs(str(path)).pairs
    found = _encode(tokenizer, *pairs)
    open_turn, end = "<|im_start|>assistant\n", "<|im_end|>"
    user = "<|im_start|>user\n"
    prompt = f"{user}hello{end}\n{open_turn}"
    asks = f"{end}\n{user}and the grass?{end}\n{open_turn}It is"
    wanted = [(prompt, f"the sky{asks} green.{end}", f"a dog{end}")]
    # The last common marker is behind the second question.
    last = [(f"{prompt}ok{asks[:-5]}", f"It is green.{end}", f"It is blue.{end}")]
    if explicit:
        last = [(prompt, f"ok{asks} green.{end}", f"ok{asks} blue.{end}")]
    assert _decoded(tokenizer, found.rows) == wanted + last
    assert found.counts["message_left_out"] == found.counts["eos_inside"] == 0
    (prompted,) = encode_prompts(small.codec(tokenizer, chat=True), [HI])
    assert tokenizer.decode(prompted.ids) == prompt
    plain = _encode(tokenizer, *pairs, chat=False).rows[0]
    assert tokenizer.decode(plain.prompt_ids) == HI


def test_a_shared_reply_of_transcripts_is_part_of_the_prompt(tmp_path):
    tokenizer = small.byte_level(small.CHATML)
    ask = "\n\nHuman: {0}\n\nAssistant: {0}"
    path = tmp_path / "pairs.jsonl"
    sides = {"chosen": "the sky", "rejected": "a dog"}
    row = {side: f"{HI} ok{ask.format(text)}" for side, text in sides.items()}
    path.write_text(json.dumps(row))
    encoded = _encode(tokenizer, *load_pairs(str(path)).pairs)
    prompt, chosen, _ = _decoded(tokenizer, encoded.rows)[0]
    assert prompt.endswith("<|im_start|>assistant\nok<|im_end|>\n<|im_start|>user\n")
    assert chosen.startswith("the sky<|im_end|>\n<|im_start|>assistant\nthe sky")


@pytest.mark.parametrize(
    "prompt, chosen, wanted",
    [
        (HI, " a\n\nHuman: b", "the last role is 'user'"),
        (HI, " a\n\nAssistant: b", "role 'assistant', where 'user' was expected"),
        (HI, "\n\nHuman: b\n\nAssistant: c", "one of its turns is empty"),
        (HI + " I", " am", "ends inside a turn"),
    ],
)
def test_transcripts_that_are_no_conversations_are_named(prompt, chosen, wanted):
    tokenizer = small.byte_level(small.CHATML)
    with pytest.raises(BadInput, match=f"f:7: with the chat template: .*{wanted}"):
        _encode(tokenizer, PreferencePair(prompt, chosen, " no", "f:7"))


def test_an_instruction_gets_no_line_break_inside_its_turn(tmp_path):
    tokenizer = small.byte_level(small.CHATML)
    row = {"instruction": "hello", "chosen": "a dog", "rejected": "the sky"}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row))
    pairs = load_pairs(str(path)).pairs
    prompts = [
        tokenizer.decode(_encode(tokenizer, *pairs, chat=chat).rows[0].prompt_ids)
        for chat in (True, False)
    ]
    wanted = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert prompts == [wanted, "hello\n"]
