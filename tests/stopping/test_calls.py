"""A user's function that hangs ends by its time-out, whatever it hangs in."""

import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tpmm_jax.config import load_config
from tpmm_jax.data.config import DataConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.loop.prompt_functions import prompt_file
from tpmm_jax.rewards import NamedJudge, NamedScorer, ScorerConfig, load_raters
from tpmm_jax.stopping import call_user
from tpmm_jax.stopping.guard import GUARD


def sleeps():
    time.sleep(600)


def computes():
    while True:
        pass


def matches():
    # Keeps the interpreter to itself, so that no other thread runs.
    re.match(r"(a+)+$", "a" * 64 + "b")


def retries():
    for _ in range(2):
        try:
            time.sleep(600)
        except BaseException:
            continue
    return time.sleep(600)


def wraps():
    try:
        time.sleep(600)
    except BaseException as error:
        raise RuntimeError("the request failed") from error


@pytest.mark.parametrize("function", [sleeps, computes, matches, retries, wraps])
def test_a_hanging_function_is_ended(function):
    started = time.monotonic()
    with pytest.raises(BadInput, match=r"f did not return within 0.2 s.*raise --timeo"):
        call_user("f", function, timeout=0.2, option="--timeout")
    assert time.monotonic() - started < 60


def test_a_function_that_keeps_threads_is_ended():
    # Leaving the pool waits for its threads: it is interrupted there as well.
    def function():
        with ThreadPoolExecutor(1) as pool:
            return list(pool.map(lambda _: time.sleep(4), [0]))

    started = time.monotonic()
    with pytest.raises(BadInput, match="did not return"):
        call_user("pool", function, timeout=0.2)
    assert time.monotonic() - started < 3.9


def test_what_returns_in_time_is_left_alone():
    seen = []

    def function():
        # As libraries that check answers do.
        signal.signal(signal.SIGALRM, lambda *_: seen.append(True))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        time.sleep(0.2)
        return 3

    assert call_user("f", function, timeout=30) == 3
    assert seen == [True]
    assert call_user("f", lambda: call_user("g", lambda: 4), timeout=None) == 4
    with pytest.raises(ZeroDivisionError):
        call_user("f", lambda: 1 / 0, timeout=30)


@pytest.mark.parametrize("code", [None, 0, 2, "done"])
def test_code_that_exits_does_not_end_a_command_as_if_it_were_done(code, tmp_path):
    def leaves(*args):
        sys.exit(code)

    with pytest.raises(BadInput, match=r"mine called sys\.exit\(.*\(on 1 prompt"):
        NamedScorer("mine", leaves)(["p"], [["a", "b"]])
    with pytest.raises(BadInput, match=r"judge mine called sys\.exit"):
        NamedJudge("mine", leaves)(["p"], ["a"], ["b"])
    config = tmp_path / "exits.py"
    config.write_text(f"import sys\nsys.exit({code!r})\n")
    with pytest.raises(BadInput, match=r"exits\.py called sys\.exit"):
        load_config(config)
    with pytest.raises(BadInput, match=r"did not return within 0\.2 s"):
        call_user("f", lambda: exits_when_late(code), timeout=0.2)


def exits_when_late(code):
    try:
        time.sleep(600)
    except BaseException:
        sys.exit(code)


def hangs(*args):
    time.sleep(600)


def test_scorers_and_judges_have_a_time_out():
    with pytest.raises(BadInput, match=r"scorer mine did not return within 0.2 s \(on"):
        NamedScorer("mine", hangs, 0.2)(["p"], [["a", "b"]])
    with pytest.raises(BadInput, match=r"judge mine did not return within 0\.2 s"):
        NamedJudge("mine", hangs, 0.2)(["p"], ["a"], ["b"])


def test_the_field_that_sets_the_time_out_is_named(tmp_path):
    name, data = "test_calls:hangs", DataConfig(timeout=0.2)
    scorer = ScorerConfig(name=name, timeout=0.2)
    for option, wanted in (
        (None, ["scorer.timeout", "evaluation.timeout", "evaluation.timeout"]),
        ("--timeout", ["--timeout"] * 3),
    ):
        raters = load_raters(
            scorer, {"a": name}, {"b": name}, timeout=0.2, timeout_option=option
        )
        calls = (
            lambda r: r.scorer(["p"], [["a", "b"]]),
            lambda r: r.scorers["a"](["p"], [["a", "b"]]),
            lambda r: r.judges["b"](["p"], ["a"], ["b"]),
        )
        for call, field in zip(calls, wanted):
            with pytest.raises(BadInput, match=rf"raise {field} \(none"):
                call(raters)
    for option, field in (("data.prompts", "data.timeout"), ("FILE", "--timeout")):
        with pytest.raises(BadInput, match=rf"raise {field} \(none"):
            prompt_file(name, option, data, tmp_path / "made.jsonl")


def test_a_person_is_told_what_is_waited_for(monkeypatch):
    said = []
    monkeypatch.setattr(GUARD, "say", said.append)
    monkeypatch.setattr("tpmm_jax.stopping.waits.FIRST_LINE", 0.3)
    call_user("scorer slow", lambda: time.sleep(1.6), timeout=100)
    assert re.fullmatch(
        r"waiting for scorer slow since \d\d:\d\d:\d\d \(\d s, until 100 s at most\)",
        said[0],
    )
    assert 2 <= len(said) <= 3
    # Twice as long as usual first: what is always slow is not announced every time.
    said.clear()
    call_user("scorer slow", lambda: time.sleep(1.0), timeout=100)
    assert said == []
