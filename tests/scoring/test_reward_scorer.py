"""Reward models as scorers: what they read, and that a reward is its row's alone."""

import pathlib
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "loop"))

import tiny_run

from tpmm_jax.errors import BadInput
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import from_mask
from tpmm_jax.rewards import Known, ScorerConfig
from tpmm_jax.scoring import RewardScorer, load_raters, load_scorer
from tpmm_jax.scoring.reward_scorer import refuse_not_finite
from tpmm_jax.scoring.row_rewards import padded_length
from tpmm_jax.weights.loading import load_reward

PROMPTS = ["w1 w2", "w3", "w4 w5 w6"]
ANSWERS = [[" w7 w8", " w9"], [" w1 w2 w3", " w0"], [" w27", " w1 w1 w1"]]
TEMPLATE = (
    "{% for m in messages %}<bos> {{ m['role'][0] | replace('u', 'w1') | "
    "replace('a', 'w2') | replace('s', 'w3') }} {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<bos> w2 {% endif %}"
)


@pytest.fixture(scope="module")
def model():
    tokenizer = tiny_run.tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    return replace(load_reward(tiny_run.reward_model()), tokenizer=tokenizer)


def test_rewards_are_the_heads_at_the_end_of_the_row(model):
    scorer = RewardScorer(model)
    ids = scorer.encode(["w1 w2"], [[" w7", " w7"]], [[True, False]])
    # BOS once, the answer, and its end only where it came to one.
    assert ids == [[[2, 4, 5, 10, 1], [2, 4, 5, 10]]]
    found = scorer(["w1 w2"], [[" w7", " w7"]], [[True, False]])
    for row, reward in zip(ids[0], found[0]):
        tokens = jnp.asarray([row])
        wanted = model.decoder.rewards(
            model.params, from_mask(tokens, jnp.ones_like(tokens))
        )
        np.testing.assert_allclose(reward, float(wanted[0]), rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float64 and found[0, 0] != found[0, 1]
    # BOS that the text spells out does not stand twice.
    again = scorer.encode(["<bos> w1 w2"], [[" w7 <eos>"]], [[True]])
    assert again[0][0] == ids[0][0]


def test_a_reward_depends_on_its_row_alone(model):
    whole = RewardScorer(model, batch_size=4)(PROMPTS, ANSWERS)
    one = RewardScorer(model, batch_size=3)
    alone = [[one([p], [[a]])[0, 0] for a in some] for p, some in zip(PROMPTS, ANSWERS)]
    np.testing.assert_allclose(whole, alone, rtol=1e-5, atol=1e-6)
    scorer = RewardScorer(model, batch_size=4, cached=2)
    for _ in range(2):  # the second time a part of it comes from the cache
        np.testing.assert_array_equal(scorer(PROMPTS, ANSWERS), whole)
    assert len(scorer._known) == 2
    turned = RewardScorer(model, batch_size=4)(PROMPTS[::-1], ANSWERS[::-1])
    np.testing.assert_array_equal(turned, whole[::-1])


def test_a_sharded_model_gives_the_same(model):
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2))
    sharded = load_reward(tiny_run.reward_model(), mesh=mesh)
    sharded = replace(sharded, tokenizer=model.tokenizer)
    assert len(jax.tree.leaves(sharded.params)[0].sharding.device_set) == mesh.size
    found = RewardScorer(sharded)(PROMPTS, ANSWERS)
    np.testing.assert_allclose(
        found, RewardScorer(model)(PROMPTS, ANSWERS), rtol=1e-5, atol=1e-5
    )
    assert RewardScorer(sharded).digest == RewardScorer(model).digest


def test_conversations_are_written_with_the_models_own_template(model):
    tokenizer = tiny_run.tokenizer()
    tokenizer.chat_template = TEMPLATE
    scorer = RewardScorer(replace(model, tokenizer=tokenizer))
    asked = [{"role": "user", "content": "w9"}]
    ended, cut = scorer.encode([asked], [["w8", "w8"]], [[True, False]])[0]
    user, assistant, bos, eos = 4, 5, 2, 1
    assert ended == [bos, user, 12, eos, bos, assistant, 11, eos]
    assert cut == ended[:-1]
    # A text is a user's message where the model knows messages alone.
    told = RewardScorer(replace(model, tokenizer=tokenizer), chat=True)
    assert told.encode(["w9"], [["w8"]], [[True]])[0][0] == ended
    with pytest.raises(BadInput, match="without a chat template"):
        RewardScorer(model, chat=False)([asked], [["w8"]])
    with pytest.raises(BadInput, match="no chat template"):
        RewardScorer(model)([asked], [["w8"]])


def test_what_cannot_be_read_is_refused(model):
    scorer = RewardScorer(model)
    long = " w1" * 70
    with pytest.raises(BadInput, match=r"response 1 has 73 tokens.* 64 positions"):
        scorer(["w1"], [[" w2", long]])
    scorer.check_context(PROMPTS, 60)
    with pytest.raises(BadInput, match="up to 65 tokens: a prompt of 4"):
        scorer.check_context(PROMPTS, 61)
    with pytest.raises(BadInput, match="no tokenizer"):
        RewardScorer(replace(model, tokenizer=None))
    with pytest.raises(BadInput, match="token ids"):
        scorer([[1, 2]], [["w1"]])
    broken = {**model.params, "score": model.params["score"].at[0].set(np.nan)}
    with pytest.raises(BadInput, match="score holds inf or nan"):
        refuse_not_finite(replace(model, params=broken))
    with pytest.raises(BadInput, match="response 0 of prompt 0 the reward nan"):
        RewardScorer(replace(model, params=broken))(["w1"], [["w2"]])


def test_lengths_are_few():
    assert len({padded_length(n, 4096) for n in range(1, 4097)}) == 15
    assert all(n <= padded_length(n, 999) <= 999 for n in range(1, 1000))


def test_a_prefix_names_a_model():
    source = tiny_run.reward_model()
    scorer = load_scorer(ScorerConfig(name=f"reward:{source}"))
    known = Known(asked=["w1"], ended=[[True, False]])
    found = scorer(["rendered"], [[" w2", " w2"]], known)
    wanted = RewardScorer(load_reward(source))(["w1"], [[" w2"] * 2], [[True, False]])
    np.testing.assert_array_equal(found, wanted)
    raters = load_raters(ScorerConfig(), {"rm": f"reward:{source}"}, {})
    assert raters.digests() == {"evaluation.scorers.rm": scorer.digest}
    label = ScorerConfig(name=f"reward:{source}")
    with pytest.raises(BadInput, match=r"rm \(reward:.*\) is the model that labels"):
        load_raters(label, {"rm": f"reward:{source}"}, {})
    other = tiny_run.reward_model(1)
    assert len(load_raters(label, {"rm": f"reward:{other}"}, {}).digests()) == 2


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"name": "reward:nowhere"}, "scorer.name = 'reward:nowhere': .*nowhere"),
        ({"name": "judge:nowhere"}, "scorer.name = 'judge:nowhere': .*nowhere"),
        ({"name": "judge:x", "options": {"chat": 1}}, "the config's section judge"),
        ({"options": {"chatt": 1}}, "options.chatt: .*did you mean chat"),
        ({"name": "causal"}, "causal language model"),
        ({"name": "constant"}, "every answer the reward 0"),
    ],
)
def test_names_that_are_no_reward_model_are_refused(config, text):
    known = {
        "causal": tiny_run._built(),
        "constant": tiny_run.reward_model(0, 0.0),
    }
    name = config.pop("name", tiny_run.reward_model())
    name = known.get(str(name), name)
    name = name if str(name).startswith(("reward:", "judge:")) else f"reward:{name}"
    with pytest.raises(BadInput, match=text):
        load_scorer(ScorerConfig(name=name, **config))
    with pytest.raises(BadInput, match=r"under evaluation\.scorers"):
        load_raters(ScorerConfig(), {}, {"rm": "reward:x"})
