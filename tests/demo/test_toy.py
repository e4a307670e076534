"""The demonstration's language, reward and model are what they say."""

import io

import numpy as np
import pytest

from tpmm_jax.config import load_config
from tpmm_jax.data.records import Rollout
from tpmm_jax.demo import grammar, toy
from tpmm_jax.demo.side_by_side import (
    before_and_after,
    comparison,
    main,
    side_by_side,
)
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.store.records import append_records
from tpmm_jax.weights.loading import load

PROMPT = "Our Monday lunch at the old cafe:"
GOOD = " The coffee was very good."
CONFIG = "configs/quickstart.py"


def rated(text, prompt=PROMPT):
    return toy.reward([prompt], [[text]])[0, 0]


def test_the_corpus_is_the_same_every_time():
    prompts = grammar.all_prompts()
    assert len(set(prompts)) == len(prompts)
    assert grammar.make_texts(prompts, 7) == grammar.make_texts(prompts, 7)
    assert grammar.make_texts(prompts, 7) != grammar.make_texts(prompts, 8)


def test_every_text_of_the_grammar_is_grammatical_and_fits():
    tokenizer = toy.make_tokenizer()
    prompts = grammar.all_prompts()
    for prompt, text in zip(prompts, grammar.make_texts(prompts, 3), strict=True):
        sentences = [s + "." for s in text[len(prompt) + 1 :].rstrip(".").split(". ")]
        read = [grammar.read_sentence(s) for s in sentences]
        assert len(read) == grammar.SENTENCES and None not in read, text
        assert rated(text[len(prompt) :], prompt) == pytest.approx(
            np.mean([score for _, score in read])
        )
        assert len(tokenizer(text)["input_ids"]) + 1 <= toy.TEXT_LENGTH
        assert len(tokenizer(prompt)["input_ids"]) == 9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # value x degree; loved = 1; two qualities count their mean
        (
            GOOD + " We loved the cake. The bill was dull but perfect.",
            (0.5 + 1 + 0.2) / 3,
        ),
        (GOOD + " We noticed the cake. The bill was quite awful.", (0.5 + 0 - 0.6) / 3),
        (GOOD + " We loved the cake. We liked the bill. We hated the music.", 1 / 4),
        # missing, repeated, off topic, cut short, broken: -1 each
        (GOOD, (0.5 - 2) / 3),
        ("", -1.0),
        (GOOD * 3, (0.5 - 2) / 3),
        (GOOD + " We loved the cake. We loved the pool.", (0.5 + 1 - 1) / 3),
        (GOOD + " We loved the cake. We loved the", (0.5 + 1 - 1) / 3),
        (
            GOOD + " We loved the cake. The bill was good but perfect.",
            (0.5 + 1 - 1) / 3,
        ),
        (GOOD + " We loved the cake. The bill was good and good.", (0.5 + 1 - 1) / 3),
        (GOOD + " We loved the cake. The bill was very very good.", (0.5 + 1 - 1) / 3),
        (" perfect perfect perfect", -1.0),
        (" perfect. lovely. superb.", -1.0),
        ("....", -1.0),
    ],
)
def test_the_reward_is_its_formula(text, expected):
    assert rated(text) == pytest.approx(expected)


def test_the_reward_has_the_shape_of_the_responses():
    texts = [[GOOD, ""], ["", GOOD]]
    rewards_BR = toy.reward([PROMPT, "Once upon a time"], texts)
    np.testing.assert_allclose(rewards_BR, [[-0.5, -1], [-1, -0.5]])


def test_the_tokenizer_returns_every_text():
    tokenizer = toy.make_tokenizer()
    for text in grammar.make_texts(grammar.all_prompts(), 5):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_text_batch_counts_what_is_predicted():
    tokenizer = toy.make_tokenizer()
    texts = grammar.make_texts(grammar.all_prompts()[:3], 0)
    batch = toy.text_batch(tokenizer, texts)
    lengths = [len(tokenizer(text)["input_ids"]) + 1 for text in texts]
    np.testing.assert_array_equal(batch["mask_BT"].sum(1), lengths)
    np.testing.assert_array_equal(batch["weight_B"], np.array(lengths) - 1)
    for b, length in enumerate(lengths):
        assert batch["tokens_BT"][b, length - 1] == tokenizer.eos_token_id


def test_the_comparison_names_both_rules():
    reward = {"reward/mean": -0.25, "reward/low": -0.3, "reward/high": -0.2}
    row = {"iteration": 0, "kl/theta_0": 0.0, **reward}
    lines = comparison({"previous": [row], "learned": [row, {**row, "iteration": 1}]})
    assert "previous: reward" in lines[0] and "learned: reward" in lines[0]
    assert lines[2].split() == ["0", *["-0.25", "±", "0.05", "0.0"] * 2]
    assert len({len(line) for line in lines}) == 1


def test_one_answer_before_and_one_after_are_shown(tmp_path):
    """Of the prompt whose reward rose by the median."""
    for t, rewards in ((0, [0.0, 0.5, -1.0]), (2, [1.0, 0.5, 1.0])):
        rows = [
            Rollout(prompt=f"p{i}", responses=[f" said {t}-{i}"], rewards=[reward],
                    held_out=True, prompt_ids=[1], response_ids=[[2]])
            for i, reward in enumerate(rewards)
        ]  # fmt: skip
        path = tmp_path / "iterations" / f"{t:03d}" / "evaluation.jsonl"
        path.parent.mkdir(parents=True)
        append_records(path, rows, 0)
    assert before_and_after(tmp_path, 2) == [
        f"{tmp_path.name}, the prompt of median gain: p0",
        "  before (+0.00)  said 0-0",
        "  after  (+1.00)  said 2-0",
    ]


def test_the_command_refuses_a_rule(capsys):
    assert main(CONFIG, ["--set", "reference.rule=ema"]) == 2
    assert "compares previous and learned" in capsys.readouterr().err


@pytest.mark.slow
def test_a_small_quickstart_runs_continues_and_says_that_it_is_done(tmp_path):
    overrides = [
        "iterations=2",
        "rollout.prompts_per_iteration=32",
        "evaluation.num_prompts=8",
        "train.epochs=1",
    ]
    config = load_config(CONFIG, overrides)
    toy.build_model(tmp_path / "theta_0", RunConsole(io.StringIO()), steps=80)
    out = io.StringIO()
    side_by_side(config, tmp_path, RunConsole(out))
    for rule in ("previous", "learned"):
        assert [r["iteration"] for r in iteration_rows(tmp_path / rule)] == [0, 1, 2]
    assert (tmp_path / "reward.png").exists()
    said = out.getvalue()
    assert "reward of learned minus previous" in said and "Next" in said
    metrics = (tmp_path / "learned" / "metrics.jsonl").read_bytes()
    again = io.StringIO()
    side_by_side(config, tmp_path, RunConsole(again))
    assert again.getvalue().count("finished already") == 2
    assert (tmp_path / "learned" / "metrics.jsonl").read_bytes() == metrics
    assert load(tmp_path / "learned" / "trajectory@2").config.family == "gemma"
