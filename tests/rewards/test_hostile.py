"""What a user's function does with its lists changes no text and no number."""

from typing import Any

import numpy as np
import pytest

from tpmm_jax.errors import BadInput
from tpmm_jax.rewards import NamedJudge, NamedScorer, ScorerConfig, load_scorer

PROMPTS = [" the second ", "a first"]
RESPONSES = [["  ccc ", "a"], ["bb", "dddd"]]
LENGTHS = [[6, 1], [2, 4]]


def lengths(responses: Any) -> list[list[float]]:
    return [[float(len(text)) for text in some] for some in responses]


def sorts(prompts: Any, responses: Any) -> Any:
    found = lengths(responses)
    prompts.sort()
    responses.sort()
    for some in responses:
        some.sort()
    return found


def strips(prompts: Any, responses: Any) -> Any:
    found = lengths(responses)
    prompts[:] = [prompt.strip() for prompt in prompts]
    for some in responses:
        some[:] = [text.strip() for text in some]
    return found


def clears(prompts: Any, responses: Any) -> Any:
    found = lengths(responses)
    for some in responses:
        some.clear()
    prompts.clear()
    responses.clear()
    return found


def writes_rewards(prompts: Any, responses: Any) -> Any:
    """Returns its very argument, filled with numbers."""
    for some in responses:
        some[:] = [len(text) for text in some]
    return responses


@pytest.mark.parametrize("function", [sorts, strips, clears, writes_rewards])
def test_a_scorer_has_its_own_lists(function: Any) -> None:
    prompts, responses = list(PROMPTS), [list(some) for some in RESPONSES]
    found = NamedScorer("mine", function)(prompts, responses)
    np.testing.assert_array_equal(found, LENGTHS)
    assert (prompts, responses) == (PROMPTS, RESPONSES)


def test_an_array_that_a_scorer_keeps_is_not_the_librarys() -> None:
    kept = np.zeros((2, 2))

    def reuses(prompts: Any, responses: Any) -> Any:
        kept[:] = lengths(responses)
        return kept

    scorer = NamedScorer("mine", reuses)
    first = scorer(PROMPTS, RESPONSES)
    second = scorer(PROMPTS, [["", ""], ["", ""]])
    kept[:] = -1
    np.testing.assert_array_equal(first, LENGTHS)
    np.testing.assert_array_equal(second, np.zeros((2, 2)))
    first[:] = 7
    assert (kept == -1).all()


def test_lists_that_a_scorer_keeps_are_not_the_librarys() -> None:
    kept: list[Any] = []

    def keeps(prompts: Any, responses: Any) -> Any:
        for old_prompts, old_responses in kept:
            old_prompts[:] = ["rewritten"]
            for some in old_responses:
                some[:] = ["rewritten"]
        kept.append((prompts, responses))
        return lengths(responses)

    prompts, responses = list(PROMPTS), [list(some) for some in RESPONSES]
    scorer = NamedScorer("mine", keeps)
    for _ in range(2):
        np.testing.assert_array_equal(scorer(prompts, responses), LENGTHS)
    assert (prompts, responses) == (PROMPTS, RESPONSES)


def test_a_generator_is_refused_by_name() -> None:
    def yields(prompts: Any, responses: Any) -> Any:
        yield from lengths(responses)

    wanted = r"mine returned a generator .*wanted a list or array of shape \(2, 2\)"
    with pytest.raises(BadInput, match=wanted):
        NamedScorer("mine", yields)(PROMPTS, RESPONSES)


def test_an_array_that_cannot_be_read_is_refused_by_name() -> None:
    class OnADevice:
        def __array__(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("call detach first")

    with pytest.raises(BadInput, match=r"mine returned a OnADevice .*detach first"):
        NamedScorer("mine", lambda *_: OnADevice())(PROMPTS, RESPONSES)


def test_options_are_new_at_every_call(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "takes_words.py").write_text(
        "def score(prompts, responses, words):\n"
        "    word = words.pop()\n"
        "    return [[float(word in t) for t in some] for some in responses]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = {"words": ["a"]}
    scorer = load_scorer(ScorerConfig(name="takes_words:score", options=options))
    for _ in range(2):
        np.testing.assert_array_equal(scorer(PROMPTS, RESPONSES), [[0, 1], [0, 0]])
    assert options == {"words": ["a"]}


def test_a_judge_has_its_own_lists() -> None:
    kept = np.zeros(2)

    def hostile(prompts: Any, first: Any, second: Any) -> Any:
        kept[:] = [float(len(a) > len(b)) for a, b in zip(first, second)]
        prompts.clear()
        first.sort()
        second[:] = ["", ""]
        return kept

    texts = ["long answer", "b"], ["a", "longer"]
    ours, theirs = list(texts[0]), list(texts[1])
    judge = NamedJudge("mine", hostile)
    forth, back = judge(PROMPTS, ours, theirs), judge(PROMPTS, theirs, ours)
    np.testing.assert_array_equal(forth, [1, 0])
    np.testing.assert_array_equal(back, [0, 1])
    assert (ours, theirs) == texts
