"""Several scorers as one: the order of what is done to rewards, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from tpmm_jax.config import Config, EvaluationConfig, set_field
from tpmm_jax.errors import BadInput
from tpmm_jax.rewards import (
    Combination,
    Known,
    NamedScorer,
    Raters,
    Scale,
    ScorerConfig,
    load_raters,
    load_scorer,
    rate,
    read_name,
    whole_field,
    with_scale,
)

HERE = "test_combination"
PROMPTS, RESPONSES = ["p", "q"], [["a", "bb", ""], ["c", "dddd", "ee"]]
TOKENS = [[3, 4, 1], [2, 40, 0]]
KNOWN = Known(PROMPTS, [[True] * 3] * 2, tokens=TOKENS)


def length(prompts, responses):
    return [[len(text) for text in some] for some in responses]


def vowels(prompts, responses, bonus=0.0):
    return [
        [text.count("a") + text.count("e") + bonus for text in x] for x in responses
    ]


LENGTH, VOWELS = f"{HERE}:length", f"{HERE}:vowels"
SAID = [np.asarray(f(PROMPTS, RESPONSES), np.float64) for f in (length, vowels)]


def made(**fields):
    return load_scorer(ScorerConfig(**fields))


def test_a_single_scorer_is_what_it_was():
    scorer = made(name=LENGTH)
    assert scorer.members == () and scorer.name == LENGTH
    assert scorer.parts == (scorer,)
    found = rate(scorer, PROMPTS, RESPONSES, KNOWN)
    np.testing.assert_array_equal(found.rewards_BR, SAID[0])
    assert found.spread_BR is None


def test_members_are_averaged_or_summed_by_weight():
    found = rate(made(name=[LENGTH, VOWELS]), PROMPTS, RESPONSES)
    np.testing.assert_allclose(found.rewards_BR, (SAID[0] + SAID[1]) / 2)
    # The population's standard deviation: of two, half their distance.
    np.testing.assert_allclose(found.spread_BR, np.abs(SAID[0] - SAID[1]) / 2)
    weighted = made(name=[LENGTH, VOWELS], weights=[2, -0.5])
    assert weighted.name == f"2 {LENGTH} + -0.5 {VOWELS}"
    found = rate(weighted, PROMPTS, RESPONSES)
    np.testing.assert_allclose(found.rewards_BR, 2 * SAID[0] - 0.5 * SAID[1])
    np.testing.assert_allclose(found.spread_BR, np.abs(SAID[0] - SAID[1]) / 2)
    np.testing.assert_array_equal(weighted(PROMPTS, RESPONSES), found.rewards_BR)


def test_the_order_is_clip_normalise_sum_length():
    scorer = made(
        name=[LENGTH, VOWELS],
        weights=[1.0, 3.0],
        clip=1.0,
        normalise=True,
        length_penalty=0.25,
    )
    scale = Scale((2.0, 0.5), (0.5, 2.0), 6)
    found = rate(with_scale(scorer, scale), PROMPTS, RESPONSES, KNOWN)
    z = [
        np.clip((said - centre) / width, -1, 1)
        for said, centre, width in zip(SAID, scale.centre, scale.scale)
    ]
    wanted = z[0] + 3 * z[1] - 0.25 * np.asarray(TOKENS)
    np.testing.assert_allclose(found.rewards_BR, wanted)
    # Of what is summed: clipped and normalised, without weights and lengths.
    np.testing.assert_allclose(found.spread_BR, np.std(z, axis=0))
    # Any other order gives something else.
    summed = (SAID[0] + 3 * SAID[1] - 0.25 * np.asarray(TOKENS)) / 2
    assert np.abs(np.clip(summed, -1, 1) - found.rewards_BR).max() > 0.1
    assert (found.rewards_BR < -4).any()  # the penalty is not clipped


def test_clipped_alone_rewards_keep_their_unit():
    scorer = made(name=LENGTH, clip=1.0)
    found = rate(with_scale(scorer, Scale((2.0,), (0.5,), 6)), PROMPTS, RESPONSES)
    np.testing.assert_allclose(found.rewards_BR, np.clip(SAID[0], 1.5, 2.5))
    assert found.spread_BR is None


def test_without_a_scale_yet_rewards_are_summed_as_they_are():
    scorer = made(name=LENGTH, clip=0.1, normalise=True)
    np.testing.assert_array_equal(scorer(PROMPTS, RESPONSES), SAID[0])


def test_the_scale_is_mean_and_population_deviation():
    scorer = made(name=[LENGTH, VOWELS], normalise=True).function
    assert isinstance(scorer, Combination)
    scale = scorer.measure(np.asarray([[1.0, 3.0], [0.0, 4.0]]))
    assert scale == Scale((2.0, 2.0), (1.0, 2.0), 2)
    with pytest.raises(BadInput, match=r"vowels gives each .* the reward 5"):
        scorer.measure(np.asarray([[1.0, 3.0], [5.0, 5.0]]))


def test_a_length_penalty_needs_tokens():
    scorer = made(name=LENGTH, length_penalty=0.5)
    found = scorer(PROMPTS, RESPONSES, KNOWN)
    np.testing.assert_allclose(found, SAID[0] - 0.5 * np.asarray(TOKENS))
    with pytest.raises(BadInput, match="texts alone are rated"):
        scorer(PROMPTS, RESPONSES)
    # Made-up answers have none.
    assert scorer.probe("p", 3, KNOWN).shape == (2, 3)


def answered(prompts, responses, answer):
    return [[float(x in some) for x in texts] for texts, some in zip(responses, answer)]


def test_columns_are_those_of_all_members():
    scorer = made(name=[LENGTH, f"{HERE}:answered"], weights=[1.0, 10.0])
    assert scorer.columns == ("answer",)
    known = replace(KNOWN, columns={"answer": [["bb"], ["c"]]})
    found = scorer(PROMPTS, RESPONSES, known) - SAID[0]
    np.testing.assert_array_equal(found, [[0, 10, 0], [10, 0, 0]])


def test_options_go_to_every_member_and_errors_name_it():
    with pytest.raises(BadInput, match=r"scorer test_combination:length raised Type"):
        made(name=[LENGTH, VOWELS], options={"bonus": 1.0})(PROMPTS, RESPONSES)
    with pytest.raises(BadInput, match=r"scorer.name\[1\] = 'nowhere:x'"):
        made(name=[LENGTH, "nowhere:x"])
    with pytest.raises(BadInput, match="a function has no weights"):
        made(name=[LENGTH, VOWELS], ensemble="weights")


def test_digests_are_of_each_model_among_the_members():
    members = (NamedScorer("a", length, digest="1"), NamedScorer("b", vowels))
    whole = NamedScorer("a, b", Combination(members, (1.0, 1.0)), members=members)
    assert Raters(whole).digests() == {"scorer.name[0]": "1"}
    alone = NamedScorer("a", Combination(members[:1], (1.0,)), members=members[:1])
    assert Raters(alone).digests() == {"scorer.name": "1"}


def test_further_scorers_may_be_lists_whose_mean_is_taken():
    names = read_name(f'["{LENGTH}", "{VOWELS}"]', "--also")
    raters = load_raters(ScorerConfig(), {"both": names, "one": LENGTH}, {})
    found = raters.scorers["both"](PROMPTS, RESPONSES)
    np.testing.assert_allclose(found, (SAID[0] + SAID[1]) / 2)
    assert raters.scorers["both"].name == f"both (mean of {LENGTH}, {VOWELS})"
    with pytest.raises(BadInput, match=r"evaluation.scorers.both\[1\] = 'nowhere:x'"):
        load_raters(ScorerConfig(), {"both": [LENGTH, "nowhere:x"]}, {})
    evaluation = EvaluationConfig(scorers={"both": (LENGTH, LENGTH)})
    with pytest.raises(BadInput, match=r"evaluation.scorers.both is .* each of them"):
        evaluation.validate()
    assert whole_field("evaluation.scorers.both[1]") == "evaluation.scorers.both"


@pytest.mark.parametrize("text", ["[", "[1]", "[]", '["a:b", "a:b"]'])
def test_a_list_that_is_none_is_refused(text):
    with pytest.raises(BadInput, match="--proxy"):
        read_name(text, "--proxy")
    assert read_name("a:b", "--proxy") == "a:b"


TWO = {"name": (LENGTH, VOWELS)}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": ()}, "use one or more"),
        ({"name": (LENGTH, LENGTH)}, "each of them once"),
        ({"name": LENGTH, "weights": (1.0,)}, "use a list of scorers"),
        ({**TWO, "weights": (1.0,)}, "one weight each"),
        ({**TWO, "weights": (1.0, 0.0)}, "of the weight 0"),
        ({"name": LENGTH, "ensemble": "weights"}, "two or more reward models"),
        ({**TWO, "ensemble": "weights", "weights": (1.0, 1.0)}, "sum to 2"),
        ({**TWO, "ensemble": "weights", "weights": (2.0, -1.0)}, "above 0"),
        ({"name": LENGTH, "length_penalty": -1.0}, "use 0 or more"),
        ({"name": LENGTH, "clip": 0.0}, "standard deviations above 0"),
        ({"normalise": True}, "scorer.normalise is True without scorer.name"),
        ({"length_penalty": 0.1}, "scorer.length_penalty is 0.1 without"),
        ({"retries": -1}, "scorer.retries is -1"),
    ],
)
def test_what_nothing_would_read_is_refused(fields, text):
    with pytest.raises(BadInput, match=text):
        ScorerConfig(**fields).validate()


def test_the_title_names_the_members_and_what_is_done():
    assert ScorerConfig(name=LENGTH).title == LENGTH
    assert ScorerConfig(name=["a:b", "c:d"]).title == "mean of a:b, c:d"
    averaged = ScorerConfig(name=["a", "b"], ensemble="weights", weights=[0.25, 0.75])
    assert averaged.title == "sum of the weights 0.25 a + 0.75 b"
    full = ScorerConfig(name="a:b", clip=5, normalise=True, length_penalty=0.01)
    assert full.title == "a:b, clipped at 5 deviations, normalised, less 0.01 a token"


def test_a_list_is_set_from_the_command_line():
    config = ScorerConfig()
    for text in (f'name=["{LENGTH}", "{VOWELS}"]', "weights=[1, 2]", "clip=5"):
        config = set_field(config, text)
    assert config.names == (LENGTH, VOWELS) and config.shares == (1.0, 2.0)
    assert config.clip == 5.0 and set_field(config, "name=a:b").name == "a:b"
    assert Config.__dataclass_fields__["scorer"].default_factory is ScorerConfig
