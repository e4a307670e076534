"""Metric rows survive a kill, a torn line, a full disk, and repeat byte for byte."""

import errno
import io
import json
import math
import os
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from tpmm_jax.errors import BadInput, CorruptCheckpoint, StorageError
from tpmm_jax.log import jsonl
from tpmm_jax.log.metrics import (
    MetricsLog,
    iteration_rows,
    read_metrics,
    read_timing,
)
from tpmm_jax.store import files


def log_steps(log, iteration, steps):
    for step in steps:
        values = {"loss": 1 / (1 + step + iteration), "rewards/margins": float(step)}
        log.log("train", iteration=iteration, step=step, values=values)
        log.log_timing("train", iteration=iteration, step=step, values={"seconds": 0.1})


def log_run(log, *, iterations=3, steps=5, start=(0, None)):
    """An outer loop's rows, from the beginning or from a committed state."""
    for iteration in range(start[0], iterations):
        first = 1
        if iteration == start[0] and start[1] is not None:
            first = start[1] + 1
        else:
            log.log("pairs", iteration=iteration, step=None, values={"count": 7})
        log_steps(log, iteration, range(first, steps + 1))
        log.log(
            "iteration", iteration=iteration, step=None, values={"reward/mean": 0.5}
        )


def belongs(row, iteration, step):
    """Whether a row was logged before an iteration's end (step None) or its step."""
    if step is None or row["iteration"] != iteration:
        return row["iteration"] <= iteration
    return row["kind"] != "iteration" and row.get("step", 0) <= step


def events(folder):
    """(tag, step, value, wall time) of every event file, in order."""
    found = []
    for path in sorted((folder / "tensorboard").glob("events*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            found += [
                (v.tag, event.step, v.simple_value, event.wall_time)
                for v in event.summary.value
            ]
    return found


def test_a_row_is_one_json_line_without_a_clock(tmp_path):
    with MetricsLog(tmp_path, mirrors=[]) as log:
        values = {"rewards/margins": np.float32(0.5), "loss": jnp.float32(0.25)}
        log.log("train", iteration=2, step=17, values=values)
        log.log("iteration", iteration=2, step=None, values={"w": [0.5, 1], "r": "θ"})
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert text[0] == (
        '{"kind": "train", "iteration": 2, "step": 17, '
        '"loss": 0.25, "rewards/margins": 0.5}'
    )
    assert read_metrics(tmp_path)[1] == {
        "kind": "iteration",
        "iteration": 2,
        "r": "θ",
        "w": [0.5, 1],
    }
    assert not (tmp_path / "tensorboard").exists()


def test_non_finite_numbers_are_valid_json_and_come_back(tmp_path):
    with MetricsLog(tmp_path) as log:
        values = {"a": math.nan, "b": [math.inf, -math.inf], "c": np.float32("nan")}
        log.log("train", iteration=0, step=1, values=values)

    def refuse(name):
        raise AssertionError(name)

    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse)["b"] == ["inf", "-inf"]
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["a"]) and math.isnan(row["c"])
    assert row["b"] == [math.inf, -math.inf]


@pytest.mark.parametrize(
    ("committed", "killed_after"),
    [
        ((0, None), 3),
        ((0, None), 5),
        ((1, 0), 3),
        ((1, 3), 3),
        ((1, 3), 5),
        ((1, 5), 5),
        ((2, 2), 3),
        ((2, 2), 5),
    ],
)
def test_killed_and_continued_equals_undisturbed(tmp_path, committed, killed_after):
    with MetricsLog(tmp_path / "whole") as log:
        log_run(log)
    log = MetricsLog(tmp_path / "killed")  # never closed: killed
    last = committed[0] + (committed[1] is None)
    log_run(log, iterations=last)
    log.log("pairs", iteration=last, step=None, values={"count": 7})
    log_steps(log, last, range(1, killed_after + 1))
    if killed_after == 5:
        log.log("iteration", iteration=last, step=None, values={"reward/mean": 0.5})
    with open(log.path(last), "ab") as file:
        file.write(b'{"kind": "train", "itera')

    with MetricsLog(tmp_path / "killed") as log:
        for t in range(4):
            log.rewind(t, lambda row: belongs(row, *committed))
        log_run(log, start=committed if committed[1] is not None else (last, None))
    whole, killed = (tmp_path / name / "metrics.jsonl" for name in ("whole", "killed"))
    assert killed.read_bytes() == whole.read_bytes()
    # TensorBoard holds each point once as well, in either file of events.
    points = [[e[:3] for e in events(tmp_path / n)] for n in ("whole", "killed")]
    assert sorted(points[0]) == sorted(points[1])
    steps = [
        (row["iteration"], row["step"]) for row in read_timing(tmp_path / "killed")
    ]
    assert steps == sorted(set(steps))


def test_rewind_keeps_the_bytes_of_the_rows_it_keeps(tmp_path):
    with MetricsLog(tmp_path, mirrors=[]) as log:
        log_run(log)
        before = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
        assert log.rewind(1, lambda row: row["kind"] == "train") == 2
        kept = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
        assert kept == [x for n, x in enumerate(before) if n not in (7, 13)]
        # Put back where they stood: before the steps, and before what came later.
        log.log("iteration", iteration=1, step=None, values={"reward/mean": 0.5})
        log.log("pairs", iteration=1, step=None, values={"count": 7})
    assert (tmp_path / "metrics.jsonl").read_bytes().splitlines() == before
    assert not list(tmp_path.glob("*.tmp"))


def finished_run(folder):
    with MetricsLog(folder, mirrors=[]) as log:
        log_run(log)
        for t in range(3):
            log.finish(t)
    return (folder / "metrics.jsonl").read_bytes(), log.path(1)


def test_either_copy_of_the_rows_puts_the_other_back(tmp_path):
    before, own = finished_run(tmp_path)
    assert before == b"".join(log_path.read_bytes() for log_path in sorted(
        tmp_path.glob("iterations/*/metrics.jsonl")))  # fmt: skip
    for harm in (b"", before[:100], before + b"nonsense\n"):
        (tmp_path / "metrics.jsonl").write_bytes(harm)
        MetricsLog(tmp_path).close()
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
    rows = own.read_bytes()
    own.unlink()
    MetricsLog(tmp_path).close()
    assert own.read_bytes() == rows
    own.unlink()
    (tmp_path / "metrics.jsonl").write_bytes(before[:900])
    with pytest.raises(
        CorruptCheckpoint, match=r"001/metrics\.jsonl, line \d+ is missing: 7"
    ):
        MetricsLog(tmp_path)


def test_changed_rows_of_a_finished_iteration_are_refused(tmp_path):
    before, own = finished_run(tmp_path)
    own.write_bytes(own.read_bytes().replace(b"0.5", b"0.4", 1))
    with pytest.raises(CorruptCheckpoint, match=r"001/metrics\.jsonl, line \d is not"):
        MetricsLog(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "tail", [b'{"kind": "tr', b'{"kind": "x", "iteration": 1}', b"\0"]
)
def test_a_torn_last_line_is_repaired_and_only_it(tmp_path, tail):
    path = tmp_path / "iterations" / "000" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    whole = b'{"kind": "train", "iteration": 0, "step": 1}\n'
    path.write_bytes(whole + tail)
    assert read_metrics(path.parent)[0]["step"] == 1  # a reader changes nothing
    assert path.read_bytes() == whole + tail
    MetricsLog(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == path.read_bytes()
    complete = tail + b"\n" if tail.endswith(b"}") else b""
    assert path.read_bytes() == whole + complete


@pytest.mark.parametrize("line", [b"{", b"3", b'{"loss": 1}', b"\xff", b"[" * 10**6])
def test_a_broken_line_inside_is_named(tmp_path, line):
    row = b'{"kind": "train", "iteration": 0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(row + line + b"\n" + row)
    with pytest.raises(BadInput, match=r"metrics\.jsonl, line 2 .*`tpmm repair"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("values", "error"),
    [({"step": 1}, ValueError), ({"x": np.ones(2)}, TypeError)],
)
def test_values_that_are_no_metric_are_refused_and_leave_no_row(
    tmp_path, values, error
):
    with MetricsLog(tmp_path) as log, pytest.raises(error, match=r"step|x"):
        log.log("train", iteration=0, step=1, values=values)
    assert read_metrics(tmp_path) == []


def test_a_full_disk_is_a_storage_error_and_leaves_whole_lines(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, mirrors=[])
    log_steps(log, 0, [1])

    class Full(io.FileIO):
        def write(self, data):
            if len(data) < 40:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data[:9])

    with monkeypatch.context() as patch:
        full = lambda path, mode, **_: Full(path, mode)  # noqa: E731
        patch.setattr(files, "open", full, raising=False)
        with pytest.raises(StorageError, match=r"metrics\.jsonl.*free some space"):
            log.log("train", iteration=0, step=2, values={"loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"}\n")
    assert len(read_metrics(tmp_path)) == 1


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        MetricsLog(tmp_path / "file")


def test_tensorboard_holds_tags_steps_and_the_time_logged(tmp_path, monkeypatch):
    with MetricsLog(tmp_path) as log:
        log_steps(log, 0, [1, 2])
        log.log("iteration", iteration=4, step=None, values={"kl": 2.0, "rule": "x"})
    first = events(tmp_path)
    assert {e[:2] for e in first} == {
        *((f"train/{name}", n) for name in ("loss", "rewards/margins") for n in (1, 2)),
        ("timing/train/seconds", 1),
        ("timing/train/seconds", 2),
        ("iteration/kl", 4),
    }
    foreign = tmp_path / "tensorboard" / "events.out.tfevents.1.host"
    foreign.write_bytes(b"")
    monkeypatch.setattr("time.time", lambda: 4e9)
    with MetricsLog(tmp_path) as log:
        log_steps(log, 5, [3])
    again = events(tmp_path)
    assert foreign.exists()
    assert len(again) == len(first) + 3
    old, new = ({e[:2]: e[3] for e in list_} for list_ in (first, again))
    assert new["train/loss", 3] == 4e9
    assert new["train/loss", 2] == pytest.approx(old["train/loss", 2], abs=1.0)


def test_steps_counted_anew_in_each_iteration_follow_one_another(tmp_path):
    with MetricsLog(tmp_path) as log:
        log_run(log, iterations=3, steps=4)
    steps = [e[1] for e in events(tmp_path) if e[0] == "train/loss"]
    assert steps == list(range(1, 13))


def test_iteration_rows_know_their_seconds(tmp_path):
    with MetricsLog(tmp_path, mirrors=[]) as log:
        log_run(log, iterations=2)
        log.log_timing("iteration", iteration=1, step=None, values={"seconds": 9.0})
    rows = iteration_rows(tmp_path)
    assert [row.get("seconds") for row in rows] == [None, 9.0]


def test_nothing_logged_reads_as_no_rows(tmp_path):
    assert read_metrics(tmp_path / "absent") == []
    assert jsonl.parsed(tmp_path / "absent") == []
