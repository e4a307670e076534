"""What a source of margins is asked about the pairs of a file."""

import json

import numpy as np
import pytest
import tiny_run

from tpmm_jax.data.codec import make_codec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.messages import Message
from tpmm_jax.data.prepare import load_rows
from tpmm_jax.errors import BadInput
from tpmm_jax.loop.offline_pairs import as_labelled, probe_pairs, rate_pairs
from tpmm_jax.rewards import NamedScorer

TEMPLATE = (
    "{% for m in messages %}<bos> {{ m['role'][0] | replace('u', 'w1') | "
    "replace('a', 'w2') }} {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<bos> w2 {% endif %}"
)


def told(role, text):
    return {"role": role, "content": text}


ROWS = [
    {"prompt": "w5", "chosen": "w6", "rejected": "w7 w8 w9 w10"},
    {
        "prompt": [told("user", "w5 w6")],
        "chosen": [told("assistant", "w7")],
        "rejected": [told("assistant", "w8")],
    },
]


def read(path, rows, *, chat):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_run.tokenizer()
    tokenizer.chat_template = TEMPLATE
    data = DataConfig(pairs=str(path), chat=chat, max_completion_length=3)
    codec = make_codec(None, tokenizer, data)
    rows = load_rows(str(path), data, codec, note=print, warn=print)
    return codec, rows


def ask(codec, rows, digest):
    asked = []

    def function(*given):
        asked.append(given)
        return np.asarray([[len(text) for text in both] for both in given[1]], float)

    source = NamedScorer("of words", function, digest=digest)
    pairs = [as_labelled(codec, x, held_out=False, flipped=False) for x in rows]
    margins = rate_pairs(source, codec, rows[::-1], pairs, 2)
    assert margins == [len(x.chosen) - len(x.rejected) for x in pairs]
    return asked


@pytest.mark.parametrize(
    "row, chat, text, ended",
    [
        (ROWS[0], False, "w5", [True, False]),
        (ROWS[0], True, "w5", [True, False]),
        (ROWS[1], True, "user: w5 w6", [True, True]),
    ],
)
def test_prompts_are_those_of_the_file_and_a_cut_answer_did_not_end(
    tmp_path, row, chat, text, ended
):
    codec, rows = read(tmp_path / "pairs.jsonl", [row, row], chat=chat)
    ((prompts, _, known),) = ask(codec, rows, "a model's")
    asked = (Message("user", text.removeprefix("user: ")),) if chat else text
    assert prompts == [asked] * 2 and known == [ended] * 2
    ((prompts, _),) = ask(codec, rows, None)
    assert prompts == [text] * 2


def test_several_turns_are_refused_for_a_model(tmp_path):
    more = [told("user", "w1"), told("assistant", "w2")]
    row = ROWS[1] | {"chosen": [*ROWS[1]["chosen"], *more]}
    codec, rows = read(tmp_path / "pairs.jsonl", [ROWS[1], row], chat=True)
    source = NamedScorer("reward:x", lambda *given: np.zeros((1, 2)), digest="1")
    with pytest.raises(BadInput, match=r"1 pairs hold several turns.*jsonl:2"):
        probe_pairs(source, codec, rows, 4)
    assert probe_pairs(source, codec, rows[:1], 4).tolist() == [0]
