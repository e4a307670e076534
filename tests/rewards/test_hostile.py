"""What a user's function does with its lists changes no text and no number."""

import asyncio
import os
from typing import Any

import jax
import numpy as np
import pytest

from tpmm_jax.errors import BadInput
from tpmm_jax.rewards import (
    NamedJudge,
    NamedScorer,
    ScorerConfig,
    import_object,
    load_scorer,
)

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


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("jax_enable_x64", lambda: jax.config.update("jax_enable_x64", True), "True"),
        (
            "jax_default_prng_impl",
            lambda: jax.config.update("jax_default_prng_impl", "rbg"),
            "rbg",
        ),
        ("", lambda: os.chdir("/"), "moved the process to the directory /: give"),
    ],
)
def test_what_a_function_changes_for_the_whole_process_is_put_back(
    name: str, change: Any, said: str, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    before = os.getcwd(), getattr(jax.config, name or "jax_enable_x64")

    def changes(prompts: Any, *_: Any) -> Any:
        change()
        return lengths([prompts])[0]

    def fails(*_: Any) -> Any:
        change()
        raise KeyError("late")

    wanted = rf"scorer mine (set {name} to )?{said}"
    with pytest.raises(BadInput, match=wanted):
        NamedScorer("mine", lambda *given: [changes(*given)])(["a"], [["b"]])
    with pytest.raises(BadInput, match=wanted.replace("scorer", "judge")):
        NamedJudge("mine", changes)(["a"], ["b"], ["c"])
    with pytest.raises(BadInput, match="KeyError"):
        NamedScorer("mine", fails)(["a"], [["b"]])
    assert before == (os.getcwd(), getattr(jax.config, name or "jax_enable_x64"))


def test_an_import_leaves_the_directory(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "moves.py").write_text("import os\nos.chdir('/')\nscore = len\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="the import of moves moved the process"):
        import_object("moves:score", "scorer.name")
    assert os.getcwd() == str(tmp_path)


def test_settings_in_a_with_statement_are_a_functions_own() -> None:
    def scores(prompts: Any, responses: Any) -> Any:
        with jax.enable_x64(True):
            return lengths(responses)

    np.testing.assert_array_equal(
        NamedScorer("mine", scores)(PROMPTS, RESPONSES), LENGTHS
    )


@pytest.mark.parametrize(
    "raw, said",
    [
        (np.ma.masked_greater([[1.0, 2.0], [3.0, 4.0]], 3), "masked"),
        (np.ones((2, 2)) + 1j, "complex"),
        ([[1, 2], [3, 4j]], "complex"),
    ],
)
def test_a_part_of_a_number_is_not_dropped(raw: Any, said: str) -> None:
    with pytest.raises(BadInput, match=f"mine returned a .*{said}"):
        NamedScorer("mine", lambda *_: raw)(PROMPTS, RESPONSES)
    whole = np.ma.masked_greater([[1.0, 2.0], [3.0, 4.0]], 9)
    found = NamedScorer("mine", lambda *_: whole)(PROMPTS, RESPONSES)
    np.testing.assert_array_equal(found, whole.data)


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit])
def test_an_interruption_of_another_kind_names_the_function(error: Any) -> None:
    def leaves(*_: Any) -> Any:
        raise error("gone")

    with pytest.raises(BadInput, match=rf"mine raised {error.__name__}: gone \(on 2"):
        NamedScorer("mine", leaves)(PROMPTS, RESPONSES)
