"""Metric rows of a run: one JSON object per line, the same bytes after a resume.

A run's folder holds
    iterations/002/metrics.jsonl
                    what iteration 2 computed: no clock in it, so that a run that was
                    killed and continued leaves the file of an undisturbed one;
    metrics.jsonl   the rows of all iterations, one behind the other: written again from
                    the iterations' own files where it differs from them;
    timing.jsonl    how long it took: seconds, tokens per second, the wall clock;
    tensorboard/    both, for TensorBoard;
    tracking.json   what Weights & Biases and MLflow were sent, if they are.

A row: {"kind": "train", "iteration": 2, "step": 17, "loss": 0.6, ...}. The keys after
the step are sorted. JSON cannot express NaN and infinity: they are written as
the strings "nan", "inf" and "-inf", which read_metrics gives back as floats.
"""

import contextlib
import functools
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsFloat

from tpmm_jax.errors import CorruptCheckpoint
from tpmm_jax.hosts import first_only, once
from tpmm_jax.log.jsonl import (
    Row,
    lines_of,
    parsed,
    plain,
    readable,
    restored,
    rewrite,
)
from tpmm_jax.log.points import Mirror
from tpmm_jax.log.tensorboard import TensorBoard
from tpmm_jax.store.digests import (
    advice,
    listing,
    read_listed,
    unlist,
    write_listed,
)
from tpmm_jax.store.files import append_lines, storage_errors, sync, write_file

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
_RESERVED = ("kind", "iteration", "step", "time")
# Kinds of rows, in the order in which an iteration writes them; some are of
# timing.jsonl alone.
KINDS = (
    *("rollout", "score", "pairs", "merge", "reference", "train", "save"),
    *("evaluation", "iteration"),
)
# Of a reward model's training, between the rows of its steps.
HELD_OUT_KIND = "held_out"

Value = str | int | float | Sequence[Any] | SupportsFloat


class MetricsLog(contextlib.AbstractContextManager["MetricsLog"]):
    """Appends rows to a run's folder; open it in one process of a run only.

    Each row reaches the operating system before log() returns, so a killed process
    loses none; flush() also puts them on the disk. Opening repairs a last line that
    was cut short, and puts back what either copy of the rows has lost. Usable as a
    context manager.

    Args:
        workdir: the run's folder, created if missing.
        mirrors: where the rows are shown too; None: workdir/tensorboard.

    Raises:
        BadInput: a line of an existing file is not a row.
        CorruptCheckpoint: the rows of a finished iteration are not those it wrote.
        StorageError: the disk refuses.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        mirrors: Sequence[Mirror] | None = None,
    ):
        self._folder = pathlib.Path(workdir)
        if mirrors is None:
            mirrors = [TensorBoard(self._folder / "tensorboard")]
        self._mirrors, self._mirroring = mirrors, False
        # (iteration, kind's place, step) of the last row.
        self._last = (-1, 0, 0)
        self._metrics, self._timing = (self._folder / n for n in (METRICS, TIMING))
        # What was put back, for whoever says so.
        self.mended = once(self._open, f"open {self._metrics}")

    def _open(self) -> list[str]:
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        rewrite(self._timing, lambda row: True)
        mended = self._restore()
        if not self._concatenate():
            mended.append(
                f"{self._metrics}: written again from the iterations' own files"
            )
        for mirror in self._mirrors:
            mirror.open()
        return mended

    def log(
        self,
        kind: str,
        *,
        iteration: int,
        step: int | None,
        values: Mapping[str, Value],
        timing: bool = False,
    ) -> None:
        """Append one row to metrics.jsonl.

        Args:
            kind: what the row is about: "train", "eval", "iteration", ...
            iteration: of the outer loop, from 0 (theta_0).
            step: optimiser updates; None for a row about a whole iteration.
            values: name -> number, string or list. Nothing that depends on the clock.
                An array scalar is fetched, which waits for the device.
            timing: append to timing.jsonl instead, with "time", seconds since the
                epoch; usual names are seconds, tokens_per_second and mfu.

        Raises:
            TypeError: a value that is not a number, string or list.
            ValueError: a reserved name.
            StorageError: the disk refuses.
        """
        taken = [name for name in _RESERVED if name in values]
        if taken:
            raise ValueError(
                f"metric names {taken} are columns of every row; rename them"
            )
        row: Row = {"kind": kind, "iteration": int(iteration)}
        if step is not None:
            row["step"] = int(step)
        if timing:
            row["time"] = round(time.time(), 3)
        row |= {name: plain(name, values[name]) for name in sorted(values)}
        # Nobody reads them before the process that writes them comes to a call of all.
        first_only(lambda: self._append(row, timing))

    def _append(self, row: Row, timing: bool) -> None:
        line = json.dumps(row, allow_nan=False)
        if not timing and (row["iteration"], *_order(row)) < self._last:
            self._insert(row, line)
            return
        self._begin_mirrors()  # before the row, which they would else hold twice
        if timing:
            append_lines(self._timing, [line], flush=False)
        else:
            append_lines(self.path(row["iteration"]), [line], flush=False)
            append_lines(self._metrics, [line], flush=False)
            self._last = (row["iteration"], *_order(row))
        when, prefix = row.get("time", time.time()), "timing/" if timing else ""
        for mirror in self._mirrors:
            mirror.add(restored(row), prefix=prefix, when=when)

    # The same, to timing.jsonl.
    log_timing = functools.partialmethod(log, timing=True)

    def rewind(
        self, iteration: int, keep: Callable[[Row], bool], *, timing: bool = True
    ) -> int:
        """Drop an iteration's rows for which keep(row) is false; all others stay.

        Args:
            iteration: whose rows.
            keep: of a row.
            timing: rows of timing.jsonl too.

        Returns:
            How many rows of metrics were dropped.
        """

        def act() -> int:
            self._end_mirrors()
            if timing:
                rewrite(
                    self._timing, lambda row: row["iteration"] != iteration or keep(row)
                )
            path = self.path(iteration)
            unlist(path)
            dropped = rewrite(path, keep)
            self._concatenate()
            return dropped

        return once(act, f"rewind {self._metrics}")

    def finish(self, iteration: int) -> None:
        """List the digests of an iteration's rows: they are all there."""
        path = self.path(iteration)

        def act() -> None:
            with storage_errors(path):
                data = path.read_bytes()
            write_listed(path, data, replace=True)

        once(act, f"finish {path}")

    def path(self, iteration: int) -> pathlib.Path:
        """Where an iteration's rows lie."""
        return self._folder / "iterations" / f"{iteration:03d}" / METRICS

    def _files(self) -> list[pathlib.Path]:
        """The iterations' files, in their order."""
        found = self._folder.glob(f"iterations/*/{METRICS}")
        numbered = [path for path in found if path.parent.name.isdigit()]
        return sorted(numbered, key=lambda path: int(path.parent.name))

    def _restore(self) -> list[str]:
        """Checks each iteration's rows; takes lost ones from metrics.jsonl.

        Returns:
            What was put back.
        """
        mended = list[str]()
        copied = dict[pathlib.Path, bytes]()
        for row, line in readable(self._metrics):
            path = self.path(row["iteration"])
            copied[path] = copied.get(path, b"") + line
        for folder in self._folder.glob("iterations/*"):
            path, known = folder / METRICS, listing(folder).get(METRICS)
            if not path.exists() and path in copied:
                write_file(path, lambda file, data=copied[path]: file.write(data))
                mended.append(f"{path}: taken from {self._metrics} again")
            if known is None:
                rewrite(path, lambda row: True)
            elif path.exists():
                read_listed(path)
            else:
                raise CorruptCheckpoint(
                    f"{path} is missing, and {self._metrics} does not hold its rows "
                    f"either; {advice(path)}"
                )
        return mended

    def _insert(self, row: Row, line: str) -> None:
        """Put a row of a phase that came again where it stood."""
        self._end_mirrors()  # the next row starts them from what is on the disk
        path = self.path(row["iteration"])
        both = [(_order(one), raw) for one, raw in lines_of(path)]
        both.append((_order(row), line.encode() + b"\n"))
        lines = [raw for _, raw in sorted(both, key=lambda one: one[0])]
        write_file(path, lambda file: file.writelines(lines))
        self._concatenate()

    def _concatenate(self) -> bool:
        """Write metrics.jsonl anew where it is not what the iterations hold.

        Returns:
            Whether it held their rows, but the last ones, which a kill may cut.
        """
        with storage_errors(self._metrics):
            files = [(path, path.read_bytes()) for path in self._files()]
            known = self._metrics.read_bytes() if self._metrics.exists() else b""
        data = b"".join(rows for _, rows in files)
        if data != known:
            write_file(self._metrics, lambda file: file.write(data))
        self._last = (-1, 0, 0)
        if last := next((path for path, rows in reversed(files) if rows), None):
            row = parsed(last)[-1]
            self._last = (row["iteration"], *_order(row))
        return data.startswith(known[: known.rfind(b"\n") + 1]) and bool(
            known or not data
        )

    def flush(self) -> None:
        """Put all rows on the disk (fsync)."""
        first_only(self._flush)

    def _flush(self) -> None:
        paths = [self._metrics, self._timing]
        if self._last[0] >= 0:
            paths.append(self.path(self._last[0]))
        for path in filter(pathlib.Path.exists, paths):
            with storage_errors(path):
                sync(path)
        if self._mirroring:
            for mirror in self._mirrors:
                mirror.flush()

    def close(self, failed: bool = False) -> None:
        """Flush and close the files.

        Args:
            failed: or stopped: what mirrors are told of the run.
        """
        self.flush()
        first_only(lambda: self._close_mirrors(failed))

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            # A run that was finished before may have rows that a mirror lacks.
            first_only(self._begin_mirrors)
        self.close(failed=kind is not None)

    def _begin_mirrors(self) -> None:
        """Start the mirrors from the rows on the disk, at the first row logged."""
        if self._mirroring or not self._mirrors:
            return
        timing = read_timing(self._folder)
        stamps = {_place(row): float(row["time"]) for row in timing}
        when = float(timing[0]["time"]) if timing else time.time()
        for mirror in self._mirrors:
            mirror.begin()
        for row in read_metrics(self._folder):
            when = stamps.get(_place(row), when)
            for mirror in self._mirrors:
                mirror.add(row, prefix="", when=when)
        for row in timing:
            for mirror in self._mirrors:
                mirror.add(row, prefix="timing/", when=row["time"])
        self._mirroring = True

    def _end_mirrors(self) -> None:
        if self._mirroring:
            for mirror in self._mirrors:
                mirror.end()
        self._mirroring = False

    def _close_mirrors(self, failed: bool) -> None:
        with contextlib.ExitStack() as stack:
            for mirror in self._mirrors:
                stack.callback(mirror.close, failed)


def read_metrics(workdir: str | os.PathLike[str]) -> list[Row]:
    """Read the rows of metrics.jsonl, in the order logged; [] if there is none.

    A last line without its end is left out: the run may be writing it.

    Raises:
        BadInput: a line that is not a row; names the file and the line.
    """
    return parsed(pathlib.Path(workdir) / METRICS)


def read_timing(workdir: str | os.PathLike[str]) -> list[Row]:
    """Read the rows of timing.jsonl as read_metrics does."""
    return parsed(pathlib.Path(workdir) / TIMING)


def iteration_rows(workdir: str | os.PathLike[str]) -> list[Row]:
    """Rows of kind "iteration", with "seconds" from timing.jsonl where it is known."""
    seconds = {
        row["iteration"]: {"seconds": row["seconds"]}
        for row in read_timing(workdir)
        if row["kind"] == "iteration" and "seconds" in row
    }
    return [
        row | seconds.get(row["iteration"], {})
        for row in read_metrics(workdir)
        if row["kind"] == "iteration"
    ]


def find_labels(rows: Iterable[Iterable[str]], start: str, end: str) -> list[str]:
    """Returns what stands between a start and an end in names of metrics.

    >>> find_labels([{"score/calm/mean": 0.5, "reward/mean": 0.1}], "score/", "/mean")
    ['calm']
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return [
        name[len(start) : -len(end)]
        for name in names
        if name.startswith(start) and name.endswith(end)
    ]


def _order(row: Row) -> tuple[int, int]:
    """Where a row stands in its iteration."""
    kind = "train" if row["kind"] == HELD_OUT_KIND else row["kind"]
    return KINDS.index(kind) if kind in KINDS else len(KINDS), row.get("step", 0)


def _place(row: Row) -> tuple[str, int, int | None]:
    return row["kind"], row["iteration"], row.get("step")
