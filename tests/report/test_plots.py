"""The reward plot is a whole file of the promised size, or an error that helps."""

import itertools

import pytest
from matplotlib import image

from tpmm_jax.errors import BadInput, StorageError
from tpmm_jax.report.plots import _apart, _curve, plot_reward


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
    curve = _curve(rows)
    assert [point[0] for point in curve] == [0, 1, 4]
    assert curve[-1][2] != curve[-1][2]  # no interval


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


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        ([0.2, 0.5], [0.2, 0.5]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.2, 0.5, 0.5, 0.5], [0.2, 0.4, 0.5, 0.6]),
        ([1.0, 1.0], [0.9, 1.0]),
        ([0.0, 0.0], [0.0, 0.1]),
    ],
)
def test_names_move_apart_and_no_further(wanted, places):
    found = _apart(wanted, 0.1, 0.0, 1.0)
    assert found == pytest.approx(places)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(found))
