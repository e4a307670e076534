"""Scorers are checked; rewards become pairs."""

import sys

import numpy as np
import pytest

from tpmm_jax.errors import BadInput
from tpmm_jax.rewards import (
    NamedScorer,
    ScorerConfig,
    import_object,
    load_scorer,
    make_pairs,
)
from tpmm_jax.rewards.vader import sentiment

PROMPTS, RESPONSES = ["first prompt", "second prompt"], [["a", "bb", ""], ["c"] * 3]


def run(function):
    return NamedScorer("mine:scorer", function)(PROMPTS, RESPONSES)


def returning(value):
    return lambda prompts, responses: value


@pytest.mark.parametrize(
    "raw",
    [
        [[1, 2, 3], [4, 5, 6]],
        np.arange(1, 7, dtype=np.float32).reshape(2, 3),
        ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
    ],
)
def test_rewards_are_float64(raw):
    found = run(returning(raw))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [[1, 2, 3], [4, 5, 6]])


def test_the_scorer_gets_prompts_and_responses():
    seen = []
    run(
        lambda prompts, responses: seen.append((prompts, responses)) or np.zeros((2, 3))
    )
    assert seen == [(PROMPTS, RESPONSES)]


@pytest.mark.parametrize(
    "raw, wanted",
    [
        (np.zeros(6), r"shape \(6,\); wanted \(2, 3\)"),
        (np.zeros((3, 2)), r"shape \(3, 2\)"),
        (np.zeros((2, 3, 1)), r"shape \(2, 3, 1\)"),
        (0.5, r"shape \(\)"),
        (None, r"shape|finite|NoneType"),
        ([[1, 2, 3], [4, 5]], "list that is not an array"),
        ([["good", "bad", "good"]] * 2, "not an array of numbers"),
        ({"rewards": 1}, "dict that is not an array"),
        ([[0, 1, float("nan")], [0, 0, 0]], "nan for response 2 of prompt 'first"),
        ([[0, 1, 2], [0, float("-inf"), 0]], "-inf for response 1 of prompt 'second"),
        ([[None, 1, 2], [0, 1, 0]], "nan for response 0"),
    ],
)
def test_other_results_are_refused_by_name(raw, wanted):
    with pytest.raises(BadInput, match=wanted) as error:
        run(returning(raw))
    assert "mine:scorer" in str(error.value)


def test_an_exception_names_scorer_and_prompt():
    def broken(prompts, responses):
        raise KeyError("score")

    with pytest.raises(
        BadInput, match=r"mine:scorer raised KeyError.*first prompt"
    ) as e:
        run(broken)
    assert isinstance(e.value.__cause__, KeyError)


def test_bad_input_and_interrupts_pass_through():
    def refuses(prompts, responses):
        raise BadInput("needs another package")

    with pytest.raises(BadInput, match=r"^needs another package$"):
        run(refuses)

    def stopped(prompts, responses):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stopped)


def test_probe_calls_with_the_right_number_of_responses():
    seen = []

    def scorer(prompts, responses):
        seen.append((len(prompts), [len(r) for r in responses]))
        return np.zeros((len(prompts), len(responses[0])))

    NamedScorer("x:y", scorer).probe("a prompt", 5)
    assert seen == [(2, [5, 5])]
    with pytest.raises(BadInput, match="x:y returned shape"):
        NamedScorer("x:y", returning(np.zeros((2, 4)))).probe("a prompt", 5)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module that the test may import."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def write(text, name="scorer_of_a_test"):
        (tmp_path / f"{name}.py").write_text(text)
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


def test_options_are_bound(module):
    name = module("def f(prompts, responses, scale=1):\n    return [[scale]]\n")
    scorer = load_scorer(ScorerConfig(name=f"{name}:f", options={"scale": 7}))
    assert scorer(["p"], [["r"]]) == [[7]]
    wrong = load_scorer(ScorerConfig(name=f"{name}:f", options={"scael": 7}))
    with pytest.raises(BadInput, match="scael"):
        wrong(["p"], [["r"]])


@pytest.mark.parametrize("name", ["nocolon", ":f", "module:", ""])
def test_names_of_another_form_are_refused(name):
    with pytest.raises(BadInput, match='wanted "module:function"'):
        import_object(name, "scorer.name")


@pytest.mark.parametrize("name", ["no_such_module_here:f", ".relative:f", "a..b:f"])
def test_modules_that_cannot_be_imported(name):
    with pytest.raises(BadInput, match=r"scorer\.name"):
        import_object(name, "scorer.name")


@pytest.mark.parametrize("text", ["def f(:\n", "raise ValueError('on import')\n"])
def test_modules_that_break_on_import(module, text):
    name = module(text, "scorer_that_breaks")
    with pytest.raises(BadInput, match="scorer_that_breaks raised"):
        import_object(f"{name}:f", "scorer.name")


def test_attributes_that_are_no_functions(module):
    name = module("value = 3\ndef score_length():\n    pass\n")
    for attribute in ("value", "scor_length"):
        with pytest.raises(BadInput, match=f"no function {attribute}.*score_length"):
            import_object(f"{name}:{attribute}", "scorer.name")


def test_no_scorer_is_an_error():
    with pytest.raises(BadInput, match="not set"):
        load_scorer(ScorerConfig())


def test_vader_tells_praise_from_blame():
    texts = [["I love this, wonderful!", "I hate this, terrible.", ""]]
    good, bad, empty = NamedScorer("vader", sentiment)(["It was "], texts)[0]
    assert good > 0.5 > -0.5 > bad and empty == 0


def pairs_of(rewards, held_out=(), flips=0.0, seed=3):
    held = [b in held_out for b in range(len(rewards))]
    return make_pairs(np.asarray(rewards, np.float64), held, flips, seed=[seed])


def test_best_against_worst():
    pairs, tied = pairs_of([[1, 5, 3], [2, -1, 0]])
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [(0, 1, 0), (1, 0, 1)]
    assert not any(p.flipped or p.held_out for p in pairs)
    assert tied == 0


def test_ties_are_dropped_and_counted():
    pairs, tied = pairs_of([[2, 2, 2], [1, 0, 1], [0, 0, 0]])
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [(1, 0, 1)]
    assert tied == 2


def test_among_equal_best_and_worst_the_first_counts():
    pairs, _ = pairs_of([[0, 9, 9, 0]])
    assert (pairs[0].chosen, pairs[0].rejected) == (1, 0)


def test_held_out_prompts_give_all_ordered_pairs():
    rewards = np.random.default_rng(0).permutation(40).reshape(8, 5).astype(float)
    rewards[:, 4] = rewards[:, 0]
    held = {1, 2, 5, 7}
    pairs, _ = pairs_of(rewards, held)
    assert {p.prompt for p in pairs if p.held_out} == held
    assert {p.prompt for p in pairs if not p.held_out} == set(range(8)) - held
    for b in held:
        found = {(p.chosen, p.rejected) for p in pairs if p.prompt == b}
        r = rewards[b]
        assert found == {(i, j) for i in range(5) for j in range(5) if r[i] > r[j]}
        assert len(found) == 9


def test_the_seed_decides_and_nothing_else():
    rewards = np.random.default_rng(0).normal(size=(30, 4))
    noisy = {"held_out": range(9), "flips": 0.4}
    assert pairs_of(rewards, **noisy) == pairs_of(rewards.copy(), **noisy)
    assert pairs_of(rewards, **noisy) != pairs_of(rewards, **noisy, seed=4)


def test_flips_swap_labels_at_their_rate():
    rewards = np.random.default_rng(0).normal(size=(4000, 2))
    clean, _ = pairs_of(rewards)
    noisy, _ = pairs_of(rewards, flips=0.3)
    for a, b in zip(clean, noisy):
        swapped = (a.rejected, a.chosen) if b.flipped else (a.chosen, a.rejected)
        assert (b.chosen, b.rejected) == swapped
    flips = sum(p.flipped for p in noisy)
    # Four standard deviations of a binomial with p = 0.3.
    assert abs(flips - 1200) < 4 * (4000 * 0.21) ** 0.5


def test_bradley_terry_s_labels_are_drawn_by_the_rewards():
    lead = 1.2
    rewards = [[lead, 0.0]] * 4000
    pairs, tied = make_pairs(
        np.asarray(rewards), [False] * 4000, 0.0, seed=[3], labels="bt"
    )
    assert tied == 0 and len(pairs) == 4000
    for pair in pairs:
        assert (pair.chosen, pair.rejected) == ((1, 0) if pair.flipped else (0, 1))
    share = 1 / (1 + np.exp(lead))
    flips = sum(pair.flipped for pair in pairs)
    assert abs(flips - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5
    # All flipped once more: the draws are the same.
    turned, _ = make_pairs(
        np.asarray(rewards), [False] * 4000, 1.0, seed=[3], labels="bt"
    )
    assert sum(pair.flipped for pair in turned) == 4000 - flips
    # Held-out pairs are drawn too, and of rewards far apart none is flipped.
    rows = np.asarray([[0.0, 0.5, 1.0]] * 200)
    held, _ = make_pairs(rows, [True] * 200, 0.0, seed=[3], labels="bt")
    assert 0 < sum(pair.flipped for pair in held) < 300
    far, _ = make_pairs(rows * 1e3, [True] * 200, 0.0, seed=[3], labels="bt")
    assert not any(pair.flipped for pair in far)


def test_noise_changes_neither_split_nor_ties():
    rewards = np.random.default_rng(0).integers(0, 2, (50, 2)).astype(float)
    a, _ = pairs_of(rewards, range(12))
    b, _ = pairs_of(rewards, range(12), flips=1.0)
    assert [(p.prompt, p.held_out) for p in a] == [(p.prompt, p.held_out) for p in b]
    assert all(p.flipped for p in b)
    assert [(p.chosen, p.rejected) for p in a] == [(p.rejected, p.chosen) for p in b]


def test_a_prompts_flips_do_not_depend_on_the_others():
    rewards = np.random.default_rng(0).normal(size=(20, 2))
    whole, _ = pairs_of(rewards, flips=0.5)
    rewards[:10] = 0
    some, _ = pairs_of(rewards, flips=0.5)
    assert some == whole[10:]


def test_a_call_that_raises_is_repeated(monkeypatch):
    waited, calls = [], []
    monkeypatch.setattr("tpmm_jax.rewards.scorer.time.sleep", waited.append)

    def flaky(prompts, responses):
        calls.append(prompts.pop())  # its own list at every call
        if len(calls) < 4:
            raise ConnectionError("busy")
        return [[1.0, 2.0]]

    scorer = NamedScorer("m:f", flaky, retries=3)
    np.testing.assert_array_equal(scorer(["p"], [["a", "b"]]), [[1, 2]])
    assert waited == [1, 2, 4] and calls == ["p"] * 4
    calls.clear()
    with pytest.raises(BadInput, match=r"busy.* in each of 3 calls"):
        NamedScorer("m:f", flaky, retries=2)(["p"], [["a", "b"]])
    # A wrong shape comes again: it is not asked for.
    wrong = NamedScorer("m:f", lambda *_: calls.append(1) or [[1.0]], retries=3)
    calls.clear()
    with pytest.raises(BadInput, match="shape"):
        wrong(["p"], [["a", "b"]])
    assert len(calls) == 1
