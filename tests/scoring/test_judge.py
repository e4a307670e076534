"""A model as a judge, and as a scorer of answers against each other."""

import pathlib
import sys
from dataclasses import replace

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "loop"))

import tiny_run

from tpmm_jax.data.messages import Message
from tpmm_jax.errors import BadInput, Stopped
from tpmm_jax.rewards import Raters, ScorerConfig, Verdicts
from tpmm_jax.scoring import (
    check_context,
    labelling_judge,
    load_raters,
    load_scorer,
    measuring,
)
from tpmm_jax.scoring import judge as judge_module
from tpmm_jax.scoring.judge import ModelJudge, as_text
from tpmm_jax.scoring.judge_config import JudgeConfig
from tpmm_jax.scoring.judge_scorer import mean_shares
from tpmm_jax.weights.loading import load, load_reward

TEMPLATE = (
    "{% for m in messages %}<bos> {{ m['role'][0] | replace('u', 'w1') | "
    "replace('a', 'w2') | replace('s', 'w3') }} {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<bos> w2 {% endif %}"
)
SHORT = {"template": "{prompt} w1 {first} w2 {second} w3", "max_new_tokens": 4}


@pytest.fixture(scope="module")
def model():
    return load(tiny_run._built())


def test_the_greedy_reply_is_read(model):
    judge = ModelJudge(model, JudgeConfig(**SHORT, first=["w5"], batch_size=2))
    prompts, first, second = ["w1", "w2", "w3"], ["w4", "w5", "w6"], ["w7", "w8", "w9"]
    found = judge(prompts, first, second)
    assert len(found.replies) == 3 and found.share_B.dtype == np.float64
    # The first word of the first reply as the first answer's verdict, and so on.
    word = found.replies[0].split()[0]
    told = ModelJudge(model, replace(judge.config, first=[word], second=["w99"]))
    assert told(prompts[:1], first[:1], second[:1]).share_B.tolist() == [1.0]
    turned = ModelJudge(model, replace(judge.config, first=["w99"], second=[word]))
    assert turned(prompts[:1], first[:1], second[:1]).share_B.tolist() == [0.0]
    none = ModelJudge(model, JudgeConfig(**SHORT, batch_size=4))
    said = none(prompts, first, second)
    assert said.share_B.tolist() == [0.5] * 3 and said.unread_B.all()
    # A reply depends on its question alone, and the same one is asked once.
    assert said.replies == found.replies
    assert none(prompts[::-1], first[::-1], second[::-1]).replies == said.replies[::-1]
    assert len(none._known) == 3
    assert len({told.digest, turned.digest, none.digest}) == 3


def test_what_cannot_be_read_is_refused(model):
    judge = ModelJudge(model, JudgeConfig(**SHORT))
    with pytest.raises(BadInput, match=r"prompt 1 .* 7\d tokens.* room for 60"):
        judge(["w1", "w1"], ["w2", "w2 " * 70], ["w3", "w3"])
    judge.check_context(["w1 w2"], 27)
    with pytest.raises(BadInput, match=r"a question of 5 .* two answers of 28"):
        judge.check_context(["w1 w2"], 28)
    with pytest.raises(BadInput, match="reward model, which writes nothing"):
        ModelJudge(load_reward(tiny_run.reward_model()))
    with pytest.raises(BadInput, match="no tokenizer"):
        ModelJudge(replace(model, tokenizer=None))
    with pytest.raises(BadInput, match="no chat template"):
        ModelJudge(model, JudgeConfig(**SHORT, chat=True))


def test_its_own_template_writes_the_question(model):
    tokenizer = tiny_run.tokenizer()
    tokenizer.chat_template = TEMPLATE
    chat = replace(model, tokenizer=tokenizer)
    about = (["w9"], ["w8"], ["w7"])
    (plain,) = ModelJudge(chat, JudgeConfig(**SHORT, chat=False)).encode(*about)
    (told,) = ModelJudge(chat, JudgeConfig(**SHORT)).encode(*about)
    user, assistant, bos, eos = 4, 5, 2, 1
    assert plain == [12, 4, 11, 5, 10, 6]
    assert told == [bos, user, *plain, eos, bos, assistant]


def test_a_signal_ends_it_between_batches(model, monkeypatch):
    judge = ModelJudge(model, JudgeConfig(**SHORT, batch_size=1))
    monkeypatch.setattr(judge_module, "asked_all", lambda: "SIGTERM")
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        judge(["w1", "w2"], ["w2", "w3"], ["w3", "w4"])
    assert not judge._known


def test_answers_meet_in_both_orders():
    asked = []

    def longer(prompts, first, second):
        """Prefers the first where lengths differ by one, whichever is longer."""
        asked.extend(zip(prompts, first, second))
        differences = [len(a) - len(b) for a, b in zip(first, second)]
        return Verdicts(
            np.asarray([0.5 if not d else float(d > -2) for d in differences])
        )

    found = mean_shares(longer, ["p", "q"], [["a", "bb", "cccc"], ["a", "a", "a"]])
    # a and bb win once each, by their place; cccc beats both in both orders.
    np.testing.assert_allclose(found.mean_BR, [[0.25, 0.25, 1.0], [0.5, 0.5, 0.5]])
    assert found.disagreed == [1, 0] and found.unread == [[], []]
    # Equal answers are not asked about.
    assert len(asked) == 6
    assert ("p", "a", "bb") in asked and ("p", "bb", "a") in asked
    assert mean_shares(longer, ["p"], [["a"]]).mean_BR.tolist() == [[0.5]]


def test_replies_that_label_nothing_are_kept():
    def silent(prompts, first, second):
        unread = np.asarray(["?" in pair for pair in zip(first, second)])
        words = [f"{a} or {b}" for a, b in zip(first, second)]
        return Verdicts(np.where(unread, 0.5, 1.0), unread, words)

    found = mean_shares(silent, ["p"], [["a", "b", "?"]])
    assert found.unread == [["a or ?", "? or a", "b or ?", "? or b"]]
    assert found.disagreed == [1] and found.mean_BR.tolist() == [[0.5] * 3]


def test_prompts_are_texts():
    user, system = Message("user", "hi"), Message("system", "be kind")
    assert as_text("hi") == as_text((user,)) == "hi"
    assert as_text((system, user)) == "system: be kind\nuser: hi"
    assert as_text([{"role": "user", "content": "hi"}]) == "hi"
    with pytest.raises(BadInput, match="unknown role 'me'"):
        as_text([{"role": "me", "content": "hi"}])


def test_a_prefix_names_a_judge():
    source = f"judge:{tiny_run._built()}"
    config = JudgeConfig(**SHORT)
    raters = load_raters(ScorerConfig(), {}, {"m": source}, judge=config)
    judge = raters.judges["m"]
    assert judge.digest == ModelJudge(load(tiny_run._built()), config).digest
    assert raters.digests() == {"evaluation.judges.m": judge.digest}
    assert judge(["w1"], ["w2"], ["w3"]).tolist() == [0.5]
    assert judge.verdicts(["w1"], ["w2"], ["w3"]).unread_B.tolist() == [True]
    check_context(raters, ["w1 w2"], 27)
    with pytest.raises(BadInput, match="judging would take up to 65 tokens"):
        check_context(raters, ["w1 w2"], 28)
    label = ScorerConfig(name=source)
    scorer = load_scorer(label, judge=config)
    assert scorer(["w1"], [["w2", "w3", "w4"]]).tolist() == [[0.5] * 3]
    assert measuring(Raters(scorer)).scorer is None
    assert len(labelling_judge(scorer).shares(["w1"], [["w2", "w3"]]).unread[0]) == 2
    with pytest.raises(BadInput, match=r"m \(judge:.*\) is the model that labels"):
        load_raters(label, {}, {"m": source}, judge=config)
    with pytest.raises(BadInput, match="'judge: ' names no model"):
        load_scorer(ScorerConfig(name="judge: "), judge=config)
    with pytest.raises(BadInput, match=r"evaluation\.scorers\.m = .* compares answers"):
        load_raters(ScorerConfig(), {"m": source}, {}, judge=config)
    reward = f"judge:{tiny_run.reward_model()}"
    with pytest.raises(BadInput, match=r"judges\.m = 'judge:.* is a reward model"):
        load_raters(ScorerConfig(), {}, {"m": reward}, judge=config)
