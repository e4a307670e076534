"""The reward plot is a whole file of the promised size, or an error that helps."""

import math
import pathlib
import re

import pytest
from matplotlib import image

from tpmm_jax.errors import BadInput, StorageError
from tpmm_jax.report.gather import RunData
from tpmm_jax.report.panels import curve
from tpmm_jax.report.plots import plot_reward


def run(iterations=4, gain=0.1):
    return [
        {
            "kind": "iteration",
            "iteration": t,
            "reward/mean": 0.4 + gain * t,
            "reward/low": 0.36 + gain * t,
            "reward/high": 0.44 + gain * t,
        }
        for t in range(iterations)
    ]


@pytest.mark.parametrize(("runs", "iterations"), [(1, 1), (2, 4), (9, 40), (30, 4)])
def test_the_plot_is_900_by_560_and_nothing_else_is_left(tmp_path, runs, iterations):
    data = {f"rule {k}": run(iterations, 0.1 + k / 50) for k in range(runs)}
    path = plot_reward(data, tmp_path / "new" / "reward.png")
    assert image.imread(path).shape[:2] == (560, 900)
    assert [p.name for p in path.parent.iterdir()] == ["reward.png"]


def test_rows_of_other_kinds_and_without_finite_rewards_are_passed_over():
    rows = [
        {"kind": "train", "iteration": 0, "step": 1, "loss": 0.5},
        *run(2),
        {"kind": "iteration", "iteration": 2, "reward/mean": float("nan")},
        {"kind": "iteration", "iteration": 3},
        {"kind": "iteration", "iteration": 4, "reward/mean": 0.9},
    ]
    drawn = curve(RunData(pathlib.Path(), "run", metrics=rows), "reward/mean", "run")
    assert drawn.x == [0, 1, 4]
    assert math.isnan(drawn.low[-1]) and math.isnan(drawn.high[-1])  # no interval


def test_a_run_without_intervals_is_drawn(tmp_path):
    rows = [{"kind": "iteration", "iteration": t, "reward/mean": t} for t in range(3)]
    assert plot_reward({"last": rows}, tmp_path / "reward.svg").stat().st_size > 0


def test_labels_may_hold_what_mathtext_and_legends_treat_specially(tmp_path):
    plot_reward({"_hidden": run(), "cost $x_{": run()}, tmp_path / "reward.png")


def test_nothing_to_draw_is_bad_input_and_leaves_the_old_plot(tmp_path):
    path = tmp_path / "reward.png"
    path.write_bytes(b"old")
    with pytest.raises(BadInput, match=r"\['learned'\].*reward/mean"):
        plot_reward({"learned": []}, path)
    assert path.read_bytes() == b"old"


def test_another_file_type_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"'\.gif'.*\.png"):
        plot_reward({"learned": run()}, tmp_path / "reward.gif")


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        plot_reward({"learned": run()}, tmp_path / "file" / "reward.png")


def test_every_run_is_named_once_and_its_name_is_cut_where_it_is_long(tmp_path):
    names = [f"rule {k}" for k in range(9)] + ["a name of 26 letters and so"]
    path = plot_reward({name: run() for name in names}, tmp_path / "reward.svg")
    said = re.findall(r"<text[^>]*>(.*?)</text>", path.read_text())
    assert [s for s in said if s.startswith("rule")] == names[:-1]
    assert "a name of 26 letter…" in said
