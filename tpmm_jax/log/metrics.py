"""Metric rows of a run: one JSON object per line, the same bytes after a resume.

A run's folder holds
    metrics.jsonl   what was computed: no clock in it, so that a run that was killed
                    and continued leaves the file of an undisturbed one;
    timing.jsonl    how long it took: seconds, tokens per second, the wall clock;
    tensorboard/    both, for TensorBoard.

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

from tpmm_jax.log.jsonl import Row, parsed, plain, restored, rewrite
from tpmm_jax.log.tensorboard import TensorBoard
from tpmm_jax.store.files import append_lines, storage_errors, sync

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
_RESERVED = ("kind", "iteration", "step", "time")

Value = str | int | float | Sequence[Any] | SupportsFloat


class MetricsLog(contextlib.AbstractContextManager["MetricsLog"]):
    """Appends rows to a run's folder; open it in one process of a run only.

    Each row reaches the operating system before log() returns, so a killed process
    loses none; flush() also puts them on the disk. Opening repairs a last line that
    was cut short. Usable as a context manager.

    Args:
        workdir: the run's folder, created if missing.
        tensorboard: also write workdir/tensorboard.

    Raises:
        BadInput: a line of an existing file is not a row.
        StorageError: the disk refuses.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, tensorboard: bool = True):
        self._folder = pathlib.Path(workdir)
        self._mirrored = tensorboard
        self._board: TensorBoard | None = None
        self._metrics, self._timing = (self._folder / n for n in (METRICS, TIMING))
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self.rewind(lambda row: True)

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
        board = self._open_board()  # before the row, which it would else hold twice
        path = self._timing if timing else self._metrics
        append_lines(path, [json.dumps(row, allow_nan=False)], flush=False)
        if board is not None:
            with self._board_errors():
                when = row.get("time", time.time())
                prefix = "timing/" if timing else ""
                board.add(restored(row), prefix=prefix, when=when)

    # The same, to timing.jsonl.
    log_timing = functools.partialmethod(log, timing=True)

    def replace(
        self, kind: str, *, iteration: int, values: Mapping[str, Value]
    ) -> None:
        """Put other values into the rows of a kind and iteration, where they stand.

        Nothing happens where there is no such row.

        Raises:
            StorageError: the disk refuses; the file is as it was.
        """
        new = {name: plain(name, values[name]) for name in sorted(values)}

        def changed(row: Row) -> Row | None:
            if (row["kind"], row["iteration"]) != (kind, iteration):
                return None
            return {k: row[k] for k in _RESERVED if k in row} | new

        self._close_board()
        rewrite(self._metrics, lambda row: True, changed)

    def rewind(self, keep: Callable[[Row], bool]) -> int:
        """Drop the rows for which keep(row) is false, from both files, atomically.

        Returns:
            How many rows of metrics.jsonl were dropped.
        """
        self._close_board()
        rewrite(self._timing, keep)
        return rewrite(self._metrics, keep)

    def flush(self) -> None:
        """Put all rows on the disk (fsync)."""
        for path in filter(pathlib.Path.exists, (self._metrics, self._timing)):
            with storage_errors(path):
                sync(path)
        if self._board is not None:
            with self._board_errors():
                self._board.flush()

    def close(self) -> None:
        """Flush and close the files."""
        self.flush()
        self._close_board()

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open_board(self) -> TensorBoard | None:
        """Start the mirror from the rows on the disk, at the first row logged."""
        if self._board is None and self._mirrored:
            with self._board_errors():
                self._board = self._build_board()
        return self._board

    def _build_board(self) -> TensorBoard:
        timing = read_timing(self._folder)
        stamps = {_place(row): float(row["time"]) for row in timing}
        when = float(timing[0]["time"]) if timing else time.time()
        board = TensorBoard(self._folder / "tensorboard")
        for row in read_metrics(self._folder):
            when = stamps.get(_place(row), when)
            board.add(row, when=when)
        for row in timing:
            board.add(row, prefix="timing/", when=row["time"])
        return board

    def _close_board(self) -> None:
        if self._board is not None:
            with self._board_errors():
                self._board.close()
            self._board = None

    def _board_errors(self) -> contextlib.AbstractContextManager[None]:
        return storage_errors(self._folder / "tensorboard")


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


def _place(row: Row) -> tuple[str, int, int | None]:
    return row["kind"], row["iteration"], row.get("step")
