"""How models are asked as judges, and how their replies are read."""

import pytest

from tpmm_jax.errors import BadInput
from tpmm_jax.scoring.judge_config import (
    TEMPLATE,
    JudgeConfig,
    ask,
    read_template,
    read_verdict,
)

NAMES = ["judge:m"]
BRACKETS = JudgeConfig(first=[r"\[\[A\]\]"], second=[r"\[\[B\]\]"], tie=[r"\[\[C\]\]"])


@pytest.mark.parametrize(
    ("reply", "share"),
    [
        ("A", 1.0),
        (" B.", 0.0),
        ("tie", 0.5),
        ("A tie.", 0.5),
        ("It is a tie", 0.5),
        ("**A** is better than B", 1.0),
        ("Answer B", 0.0),
        ("I find that B is better", 0.0),
        ("Both A and B", None),
        ("a fine answer", None),
        ("Absolutely", None),
        ("", None),
    ],
)
def test_a_reply_is_read(reply, share):
    assert read_verdict(JudgeConfig(), reply) == share


def test_other_verdicts_are_read():
    assert read_verdict(BRACKETS, "A is short, B is not. [[B]]") == 0.0
    assert read_verdict(BRACKETS, "[[C]]") == 0.5
    assert read_verdict(BRACKETS, "[[A]] rather than [[B]]") == 1.0
    assert read_verdict(BRACKETS, "I say [[A]], no, [[B]]") is None
    strict = JudgeConfig(first=["1"], second=["2"], tie=())
    assert read_verdict(strict, "12") is None
    assert read_verdict(strict, "2") == 0.0
    anchored = JudgeConfig(first=["^yes"], second=["^no"])
    assert read_verdict(anchored, "\n yes, not no") == 1.0
    pairs = JudgeConfig(first=["A>B", "A>>B"], second=["B>A"], tie=["A=B"])
    assert read_verdict(pairs, "A>>B") == 1.0
    assert read_verdict(pairs, "first A=B, then B>A") is None


def test_braces_in_texts_are_texts():
    asked = ask(TEMPLATE, "{first} {x}", "{second}", "{prompt} \\1")
    assert "Prompt:\n{first} {x}\n\nAnswer A:\n{second}\n" in asked
    assert "Answer B:\n{prompt} \\1\n" in asked


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"max_new_tokens": 0}, "judge.max_new_tokens is 0"),
        ({"batch_size": 0}, "judge.batch_size is 0"),
        ({"template": "{prompt} {first}"}, "judge.template lacks {second}"),
        ({"template": "x", "template_file": "y"}, "both set"),
        ({"template_file": "/nowhere/t.txt"}, "template_file = .* cannot be read"),
        ({"first": ()}, "judge.first is empty"),
        ({"second": ("(",)}, "judge.second: .* no regular expression"),
        ({"tie": ("x*",)}, "judge.tie: .* empty reply"),
        ({"second": ("A",)}, "'A' is in judge.first and in judge.second"),
    ],
)
def test_wrong_options_are_refused(fields, text):
    with pytest.raises(BadInput, match=text):
        JudgeConfig(**fields).validate(NAMES)


def test_options_that_nothing_reads_are_refused(tmp_path):
    JudgeConfig(first=["A"]).validate([None, "my:judge"])
    with pytest.raises(BadInput, match=r"judge.tie is set, but no judge is a model"):
        JudgeConfig(tie=()).validate([None, "my:judge"])
    file = tmp_path / "t.txt"
    file.write_text("{prompt}|{first}|{second}\n", encoding="utf-8-sig")
    config = JudgeConfig(template_file=str(file))
    config.validate([None, "judge:m"])
    assert ask(read_template(config), "p", "a", "b") == "p|a|b"
