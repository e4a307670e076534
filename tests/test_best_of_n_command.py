"""tpmm best_of_n on tiny models: its numbers, its folder, and clear refusals."""

import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "loop"))
import tiny_run

from tpmm_jax.commands import best_of_n, evaluate
from tpmm_jax.evaluation import best_of, kl_bound, mean_interval
from tpmm_jax.loop import answers as answers_module

Text = pytest.CaptureFixture[str]
PROXY, GOLD = f"{__name__}:long", f"{__name__}:short"
SCORERS = ("--proxy", PROXY, "--gold", GOLD)
SMALL = ("--n", "3", "--samples", "6")
rated: list[int] = []


def long(prompts: Any, responses: Any) -> Any:
    return [[float(len(text)) for text in some] for some in responses]


def short(prompts: Any, responses: Any) -> Any:
    rated.append(len(prompts))
    return [[-0.5 * len(text) for text in some] for some in responses]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("best_of_n")
    rows = [json.dumps({"prompt": f"w{i} w3 w{2 * i}"}) + "\n" for i in range(7)]
    (folder / "prompts.jsonl").write_text("".join(rows))
    tiny_run.build_model(folder / "model")
    return folder


@pytest.fixture
def tell(folder: pathlib.Path, capsys: Text) -> Callable[..., tuple[str, str]]:
    """Runs a command line on the model; returns standard output and error."""

    def run(code: int, *args: str) -> tuple[str, str]:
        prompts = ("--prompts", str(folder / "prompts.jsonl"))
        argv = [str(folder / "model"), "--max-new-tokens", "8", *prompts, *args]
        capsys.readouterr()
        found = best_of_n.main(argv)
        out, err = capsys.readouterr()
        assert found == code, out + err
        assert "Traceback" not in err
        return out, " ".join(err.split())

    return run


def pool(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """The proxy's and the gold scores of a file of answers."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    proxy = [row["scores"]["proxy"] for row in rows]
    return np.array(proxy), np.array([row["rewards"] for row in rows])


def test_its_numbers_are_those_of_its_answers(
    folder: pathlib.Path, tmp_path: pathlib.Path, tell: Callable
) -> None:
    output = tmp_path / "out"
    out, _ = tell(0, *SCORERS, *SMALL, "--output", str(output), "--json")
    found = json.loads(out)
    assert found == json.loads((output / "best_of_n.json").read_text())
    assert (found["num_prompts"], found["samples"]) == (7, 6)
    (answers,) = output.glob("00-*.jsonl")
    proxy, gold = pool(answers)
    assert proxy.shape == (7, 6)
    (curve,) = found["curves"]
    for row, n in zip(curve["rows"], (1, 2, 3), strict=True):
        assert row["n"] == n and row["kl_bound"] == kl_bound(n)
        wanted = mean_interval(best_of(proxy, gold, [n]))
        assert [row[f"gold{end}"] for end in ("", "/low", "/high")] == list(wanted)
        assert row["proxy"] == best_of(proxy, proxy, [n]).mean()
    gains = best_of(proxy, gold, [3]) - best_of(proxy, gold, [1])
    np.testing.assert_allclose(curve["rows"][2]["gain"], gains.mean())
    # Gold is the proxy, halved and turned round: it falls from the start.
    assert curve["turn"]["down"] and curve["turn"]["n"] == 1
    assert curve["words"].startswith("gold falls from n = 1 on: at n = 3")
    page = (output / "best_of_n.html").read_text()
    assert "Gold falls from n = 1 on" in page and page.count("<svg viewBox") == 2
    assert (output / "best_of_n.png").read_bytes()[:4] == b"\x89PNG"
    # The answers are those that tpmm evaluate draws.
    options = ("--num-samples", "6", "--scorer", GOLD, "--max-new-tokens", "8")
    prompts = ("--prompts", str(folder / "prompts.jsonl"))
    output = tmp_path / "evaluated"
    evaluate.main([str(folder / "model"), *prompts, *options, "--output", str(output)])
    (same,) = output.glob("00-*.jsonl")
    for ours, theirs in zip(answers.open(), same.open(), strict=True):
        assert json.loads(ours)["responses"] == json.loads(theirs)["responses"]


def test_the_same_command_goes_on_and_draws_nothing_twice(
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    tell: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out"
    options = (*SMALL, "--batch-size", "3", "--output", str(output), "--json")
    whole, _ = tell(0, *SCORERS, *options)
    (answers,) = output.glob("00-*.jsonl")
    lines = answers.read_bytes().splitlines(keepends=True)
    # As a kill leaves it: one batch and a part of the next.
    answers.write_bytes(b"".join(lines[:4]))
    rated.clear()
    assert tell(0, *SCORERS, *options)[0] == whole
    assert rated == [2, 3, 3, 1]  # of the probe, one batch to compare, what is missing
    assert answers.read_bytes() == b"".join(lines)
    monkeypatch.setattr(answers_module, "generate_batches", None)
    # Another proxy beside the first: the answers stay, the ratings come.
    again = f"{__name__}:short_too"
    monkeypatch.setattr(sys.modules[__name__], "short_too", scaled, raising=False)
    two = ("--proxy", f"proxy={PROXY}", "--proxy", f"new={again}", "--gold", GOLD)
    out, err = tell(0, *two, *options)
    assert "rates the answers that are there" in err
    first, second = json.loads(out)["curves"]
    assert first["rows"] == json.loads(whole)["curves"][0]["rows"]
    assert second["turn"]["up"] and second["rows"][2]["lead"] > 0
    texts = [json.loads(line)["responses"] for line in lines]
    rows = [json.loads(line) for line in answers.open()]
    assert [row["responses"] for row in rows] == texts
    # An edited scorer is found; what it said is replaced.
    monkeypatch.setattr(sys.modules[__name__], "short", scaled)
    out, err = tell(0, *two, *options)
    assert f"{GOLD}: rates the answers that are there" in err
    assert "gives every answer its gold score" in str(json.loads(out)["warnings"])
    assert "seed 0, now 1" in tell(2, *two, *options, "--seed", "1")[1]


def scaled(prompts: Any, responses: Any) -> Any:
    return [[-2.0 * len(text) for text in some] for some in responses]


def test_the_table(tell: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out, err = tell(0, *SCORERS, "--n", "5", "--samples", "6")
    assert "Gold falls from n = 1 on" in out and "KL: at most" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    numbers = [line.split()[:2] for line in out.splitlines() if line[:4].strip()]
    assert ["1", "0.00"] in numbers and ["5", "0.81"] in numbers
    assert "below twice --n" in err and "draw 10" in err


def test_wrong_input_is_refused_before_a_model_is_loaded(
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    tell: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(best_of_n, "draw_pools", None)

    def refused(*args: str) -> str:
        return tell(2, *args)[1]

    assert "is the gold scorer itself" in refused("--proxy", GOLD, "--gold", GOLD)
    assert "needs at least as many" in refused(*SCORERS, "--n", "4", "--samples", "3")
    assert "--samples is 1; use at least 2" in refused(*SCORERS, "--samples", "1")
    assert "--n is 1; use at least 2" in refused(*SCORERS, "--n", "1")
    assert "the same answer" in refused(*SCORERS, "--temperature", "0")
    assert "the same answer" in refused(*SCORERS, "--top-k", "1")
    assert "has a label" in refused(*SCORERS, "--proxy", "x=a:b")
    assert "cannot be imported" in refused("--proxy", "absent:x", "--gold", GOLD)
    (tmp_path / "file").write_text("")
    assert "no pools.json" in refused(*SCORERS, "--output", str(tmp_path))
    # All at once.
    said = refused("--proxy", GOLD, "--gold", GOLD, "--n", "0", "--temperature", "0")
    assert "itself" in said and "--n is 0" in said and "same answer" in said
