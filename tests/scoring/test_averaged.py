"""Reward models that are averaged in weights, or whose predictions are."""

import pathlib
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "loop"))

import tiny_run

from tpmm_jax.errors import BadInput
from tpmm_jax.rewards import Known, ScorerConfig
from tpmm_jax.scoring import RewardScorer, check_context, load_raters, load_scorer
from tpmm_jax.weights.loading import load_reward
from tpmm_jax.weights.saving import save

PROMPTS, ANSWERS = ["w1 w2", "w3"], [[" w7 w8", " w9"], [" w1 w2 w3", " w0"]]
KNOWN = Known(PROMPTS, [[True, False], [True, True]])


@pytest.fixture(scope="module")
def names():
    return [f"reward:{tiny_run.reward_model(seed)}" for seed in (0, 1)]


def test_weights_are_averaged_once(names):
    config = ScorerConfig(name=names, ensemble="weights", weights=[0.25, 0.75])
    scorer = load_scorer(config)
    assert not scorer.members and scorer.name == config.title
    first, second = (load_reward(name.removeprefix("reward:")) for name in names)
    mean = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, first.params, second.params)
    wanted = RewardScorer(replace(first, params=mean))(PROMPTS, ANSWERS, KNOWN.ended)
    np.testing.assert_allclose(
        scorer(PROMPTS, ANSWERS, KNOWN), wanted, rtol=1e-5, atol=1e-6
    )
    raters = load_raters(config, {}, {})
    assert raters.digests() == {"scorer.name": scorer.digest}
    with pytest.raises(BadInput, match=r"rm .* is one of the models that label"):
        load_raters(config, {"rm": names[1]}, {})


def test_predictions_are_averaged_and_spread(names):
    config = ScorerConfig(name=names)
    raters = load_raters(config, {}, {})
    one, two = (load_scorer(ScorerConfig(name=name)) for name in names)
    said = np.stack([x(PROMPTS, ANSWERS, KNOWN) for x in (one, two)])
    np.testing.assert_allclose(
        raters.scorer(PROMPTS, ANSWERS, KNOWN), said.mean(0), rtol=1e-12
    )
    wanted = {f"scorer.name[{k}]": x.digest for k, x in enumerate((one, two))}
    assert raters.digests() == wanted
    with pytest.raises(BadInput, match=r"rm .* contains one of the models that label"):
        load_raters(config, {"rm": ["tiny_run:score", names[1]]}, {})
    further = load_raters(ScorerConfig(), {"rms": names}, {})
    assert set(further.digests()) == {f"evaluation.scorers.rms[{k}]" for k in (0, 1)}
    with pytest.raises(BadInput, match="64 positions"):
        check_context(further, PROMPTS, 63)
    with pytest.raises(BadInput, match="64 positions"):
        check_context(raters, PROMPTS, 63)


def test_one_model_is_not_two_members(names, tmp_path):
    model = load_reward(names[0].removeprefix("reward:"))
    save(model, tmp_path / "copy")
    config = ScorerConfig(name=[names[0], f"reward:{tmp_path / 'copy'}"])
    for ensemble in ("predictions", "weights"):
        with pytest.raises(BadInput, match=r"scorer.name: .* are one model"):
            load_raters(replace(config, ensemble=ensemble), {}, {})


def test_models_that_differ_are_not_averaged(names, tmp_path):
    model = load_reward(names[0].removeprefix("reward:"))
    tokenizer = tiny_run.tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    save(replace(model, tokenizer=tokenizer), tmp_path / "chat")
    other = pathlib.Path(__file__).parents[1] / "fixtures" / "reward_llama"
    for bad, text in (
        (f"reward:{tmp_path / 'chat'}", "another chat template"),
        (f"reward:{other}", "different architecture"),
        ("tiny_run:score", r"scorer\.name: 'tiny_run:score' has no weights"),
        (f"reward:{tiny_run._built()}", "causal language model"),
    ):
        with pytest.raises(BadInput, match=text):
            load_scorer(ScorerConfig(name=[names[0], bad], ensemble="weights"))
