"""Runs from Python: started, continued, read."""

import importlib
import json
import pathlib
import signal
import subprocess
import sys
import time
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny_run

import tpmm_jax as tpmm
from tpmm_jax.errors import BadInput
from tpmm_jax.runs import RunResults

PACKAGE = pathlib.Path(tpmm.__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    workdir = tmp_path_factory.mktemp("runs") / "run"
    overrides = {"iterations": 1, "scorer.clip": None, "evaluation.random": []}
    return tpmm.run(tiny_run.get_config(), workdir, overrides)


def test_a_run_is_started_continued_and_read(found: RunResults) -> None:
    assert [row["iteration"] for row in found.evaluations] == [0, 1]
    assert found.config["iterations"] == 1
    again = tpmm.read_run(found.workdir)
    assert again.metrics == found.metrics
    lines = (found.workdir / "metrics.jsonl").read_text().splitlines()
    assert len(found.metrics) == len(lines)
    assert set(found.metrics[0]) == set(json.loads(lines[0]))
    names = ["trajectory@0", "trajectory@1", "policy@last", "policy@mean"]
    assert found.policies == names
    newest, mean = found.policy(), found.policy("policy@mean")
    first = found.policy(0).params
    middle = jax.tree.map(lambda a, b: (a + b) / 2, first, newest.params)
    for a, b in zip(jax.tree.leaves(mean.params), jax.tree.leaves(middle)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    with pytest.raises(BadInput, match="no policy 'best'; there are trajectory@0"):
        found.policy("best")
    answers = found.samples(1)
    assert len(answers) == 6 and answers[0].rewards is not None
    assert found.samples(1, "elsewhere") == []
    assert found.report().exists()


def test_a_run_is_shown_in_few_words(found: RunResults) -> None:
    assert repr(found).startswith(f"RunResults('{found.workdir}': 2 evaluations, ")
    assert len(repr(found)) < 300 and "<table>" in found._repr_html_()
    assert "Reward" in found.figures
    figure = found.figures["Reward"]
    assert repr(figure) == "Figure('Reward')"
    assert "<svg" in figure._repr_html_() and figure.note in figure._repr_html_()
    model = found.policy(1)
    assert repr(model).startswith("Model(gemma, language model, 0.0 M, float32, ")
    assert len(repr(model)) < 200
    assert "<td>gemma, language model</td>" in model._repr_html_()


def test_a_config_needs_a_folder(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BadInput, match="workdir is missing"):
        tpmm.run(tiny_run.get_config())
    with pytest.raises(BadInput, match="is not a directory"):
        tpmm.read_run(tmp_path / "nothing")
    wrong = replace(tiny_run.get_config(), iterations=0)
    with pytest.raises(BadInput, match="iterations is 0"):
        tpmm.run(wrong, tmp_path / "run")
    assert not (tmp_path / "run" / "trajectory").exists()


def test_no_name_of_the_facade_hides_a_module() -> None:
    for name in tpmm.__all__:
        assert not (PACKAGE / f"{name}.py").exists(), name
        assert not (PACKAGE / name).exists(), name
    assert set(dir(tpmm)) == {*tpmm.__all__, "__version__"}

    module = importlib.import_module("tpmm_jax.train")
    assert tpmm.train is module


def test_ctrl_c_is_a_keyboard_interrupt_and_the_same_call_continues(
    tmp_path: pathlib.Path,
) -> None:
    code = f"""
import signal, sys
# A job in the background ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import tiny_run, tpmm_jax as tpmm
try:
    tpmm.run(tiny_run.get_config(), {str(tmp_path / "run")!r})
except KeyboardInterrupt:
    print("interrupted", flush=True)
found = tpmm.run(tiny_run.get_config(), {str(tmp_path / "run")!r})
print(len(found.evaluations), "evaluations", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 240
    while not (tmp_path / "run" / "iterations" / "001" / "pairs.jsonl").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert out.count("interrupted") == 1 and out.endswith("3 evaluations\n")
