"""A study: its grid is checked whole, it shares, continues, and reports every cell."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "study"))

from analyse import difference, interval  # noqa: E402
from grid import read_grid  # noqa: E402

from tpmm_jax.errors import BadInput  # noqa: E402

GRID = """
config = "tiny.py"
lines = "rule"
panels = "noise"
baseline = "previous"

[fixed]
iterations = 2

[axes.seed]
field = "seed"
values = [5, 6]

[axes.rule]
previous = {"reference.rule" = "previous"}
uniform = {"reference.rule" = "uniform"}

[axes.noise]
field = "pairing.flip_probability"
values = [0.25]
"""


@pytest.fixture
def grid_file(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "tiny.py").write_text("from tiny_run import get_config  # noqa\n")
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    return path


@pytest.mark.parametrize("name", ["tune.toml", "rules.toml"])
def test_shipped_grids_are_valid(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "stories260k").mkdir(parents=True)
    monkeypatch.setenv("TPMM_ASSETS", str(tmp_path))
    grid = read_grid(ROOT / "benchmarks" / "study" / name)
    configs = [grid.load(cell) for cell in grid.cells()]
    assert len({cell.name for cell in grid.cells()}) == len(configs)
    assert {config.iterations for config in configs} == {6}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"rule"', '"rules"', "wanted an axis"),
        ('"previous"\n', '"before"\n', "wanted a level of rule: previous, uniform"),
        ("[fixed]", "[fix]", "'fix' is none of"),
        ("[5, 6]", "[5, 6", "not valid TOML"),
        ('field = "seed"', 'fields = "seed"', "wanted field and values"),
    ],
)
def test_wrong_grids_are_named(
    grid_file: pathlib.Path, old: str, new: str, message: str
) -> None:
    grid_file.write_text(GRID.replace(old, new, 1))
    with pytest.raises(BadInput, match=message):
        read_grid(grid_file)


def test_interval_is_students_over_seeds() -> None:
    values = [0.1, 0.4, 0.3]
    low, high = scipy.stats.t.interval(
        0.95, 2, loc=np.mean(values), scale=np.std(values, ddof=1) / np.sqrt(3)
    )
    np.testing.assert_allclose(interval(values), (np.mean(values), low, high))
    assert difference([0.5]) == "+0.50"  # one seed has no interval


@pytest.mark.slow
def test_study_shares_reports_and_continues(
    grid_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    work = tmp_path / "study"
    command = [
        sys.executable, str(ROOT / "benchmarks" / "study" / "run.py"), str(grid_file),
        "--workdir", str(work), "--jobs", "1",
    ]  # fmt: skip
    places = [str(ROOT), str(ROOT / "tests" / "loop")]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(places)}
    first = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=300
    )
    assert first.returncode == 0, first.stderr
    cells = {path.name: path for path in (work / "cells").iterdir()}
    assert len(cells) == 4
    # The second rule took theta_0's answers and the first rollouts from the first.
    logs = {name: (path / "log.txt").read_text() for name, path in cells.items()}
    sampled = [n for n, log in logs.items() if "evaluate theta_0  6/6" in log]
    assert sorted(sampled) == [f"seed_{s}-rule_previous-noise_0.25" for s in (5, 6)]
    first_rollouts = "iterations/001/rollouts.jsonl"
    texts = [
        (work / f"cells/seed_5-rule_{rule}-noise_0.25/{first_rollouts}").read_text()
        for rule in ("previous", "uniform")
    ]
    assert texts[0] == texts[1]
    reward = json.loads((work / "results.json").read_text())["reward"]["0.25"]
    rows = [
        json.loads(line)
        for line in (cells["seed_6-rule_uniform-noise_0.25"] / "metrics.jsonl").open()
    ]
    expected = [row["reward/mean"] for row in rows if row["kind"] == "iteration"]
    assert reward["uniform"]["6"] == expected and len(expected) == 3
    assert "| uniform |" in (work / "results.md").read_text()
    before = {
        path: path.stat().st_mtime_ns for path in work.glob("cells/*/metrics.jsonl")
    }
    again = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=300
    )
    assert again.returncode == 0, again.stderr
    after = {
        path: path.stat().st_mtime_ns for path in work.glob("cells/*/metrics.jsonl")
    }
    assert before == after
