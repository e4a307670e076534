"""Metric rows of a run: one JSON object a line, the same bytes after a resume.

A run's folder holds
    metrics.jsonl   what was computed: no clock in it, so that a run that was killed
                    and continued leaves the file of an undisturbed one;
    timing.jsonl    how long it took: seconds, tokens a second, the wall clock;
    tensorboard/    both, for TensorBoard.

A row: {"kind": "train", "iteration": 2, "step": 17, "loss": 0.6, ...}. The keys after
the step are sorted. JSON has no number for nan and the infinities: they are written as
the strings "nan", "inf" and "-inf", which read_metrics gives back as floats.
"""

import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, SupportsFloat

from tpmm_jax.log.jsonl import Lines, Row, parsed, plain, refused, restored
from tpmm_jax.log.tensorboard import TensorBoard

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
_RESERVED = ("kind", "iteration", "step", "time")

Value = str | int | float | Sequence[Any] | SupportsFloat


class MetricsLog:
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
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refused(self._folder, error) from error
        self._metrics = Lines(self._folder / METRICS)
        self._timing = Lines(self._folder / TIMING)
        self._mirrored = tensorboard
        self._board: TensorBoard | None = None

    def log(
        self,
        kind: str,
        *,
        iteration: int,
        step: int | None,
        values: Mapping[str, Value],
    ) -> None:
        """Append one row to metrics.jsonl.

        Args:
            kind: what the row is about: "train", "eval", "iteration", ...
            iteration: of the outer loop, from 0 (theta_0).
            step: optimiser updates; None for a row about a whole iteration.
            values: name -> number, string or list. Nothing that depends on the clock.
                An array scalar is fetched, which waits for the device.

        Raises:
            TypeError: a value that is no number, string or list.
            ValueError: a reserved name.
            StorageError: the disk refuses.
        """
        self._append(self._metrics, _row(kind, iteration, step, values), "")

    def log_timing(
        self,
        kind: str,
        *,
        iteration: int,
        step: int | None,
        values: Mapping[str, Value],
    ) -> None:
        """Append one row to timing.jsonl, with "time", seconds since the epoch.

        Arguments and errors are those of log(); usual names are seconds,
        tokens_per_second and mfu.
        """
        row = _row(kind, iteration, step, values, when=time.time())
        self._append(self._timing, row, "timing/")

    def _append(self, lines: Lines, row: Row, prefix: str) -> None:
        board = self._open_board()  # before the row, which it would else hold twice
        lines.append(row)
        if board is not None:
            board_row = restored(row)
            when = row.get("time", time.time())
            self._guarded(lambda: board.add(board_row, prefix=prefix, when=when))

    def rewind(self, keep: Callable[[Row], bool]) -> int:
        """Drop the rows for which keep(row) is false, from both files, atomically.

        Returns:
            How many rows of metrics.jsonl were dropped.
        """
        self._close_board()
        self._timing.rewrite(lambda rows: [keep(row) for row in rows])
        return self._metrics.rewrite(lambda rows: [keep(row) for row in rows])

    def flush(self) -> None:
        """Put all rows on the disk (fsync)."""
        self._metrics.flush()
        self._timing.flush()
        if self._board is not None:
            self._guarded(self._board.flush)

    def close(self) -> None:
        """Flush and close the files."""
        self.flush()
        self._close_board()
        self._metrics.close()
        self._timing.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open_board(self) -> TensorBoard | None:
        """Start the mirror from the rows on the disk, at the first row logged."""
        if self._board is None and self._mirrored:
            self._guarded(self._build_board)
        return self._board

    def _build_board(self) -> None:
        timing = self._timing.read()
        stamps = {_place(row): float(row["time"]) for row in timing}
        when = float(timing[0]["time"]) if timing else time.time()
        board = TensorBoard(self._folder / "tensorboard")
        for row in self._metrics.read():
            when = stamps.get(_place(row), when)
            board.add(row, when=when)
        for row in timing:
            board.add(row, prefix="timing/", when=row["time"])
        self._board = board

    def _close_board(self) -> None:
        if self._board is not None:
            self._guarded(self._board.close)
            self._board = None

    def _guarded(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            raise refused(self._folder / "tensorboard", error) from error


def read_metrics(workdir: str | os.PathLike[str]) -> list[Row]:
    """Read the rows of metrics.jsonl, in the order logged; [] if there is none.

    A last line without its end is left out: the run may be writing it.

    Raises:
        BadInput: a line that is not a row; names the file and the line.
    """
    return [row for row, _ in parsed(pathlib.Path(workdir) / METRICS)]


def read_timing(workdir: str | os.PathLike[str]) -> list[Row]:
    """Read the rows of timing.jsonl as read_metrics does."""
    return [row for row, _ in parsed(pathlib.Path(workdir) / TIMING)]


def iteration_rows(workdir: str | os.PathLike[str]) -> list[Row]:
    """Rows of kind "iteration", with "seconds" from timing.jsonl where it is known."""
    seconds = {
        row["iteration"]: row["seconds"]
        for row in read_timing(workdir)
        if row["kind"] == "iteration" and "seconds" in row
    }
    rows = [row for row in read_metrics(workdir) if row["kind"] == "iteration"]
    return [
        row | {"seconds": seconds[row["iteration"]]}
        if row["iteration"] in seconds
        else row
        for row in rows
    ]


def _row(
    kind: str,
    iteration: int,
    step: int | None,
    values: Mapping[str, Value],
    when: float | None = None,
) -> Row:
    taken = [name for name in _RESERVED if name in values]
    if taken:
        raise ValueError(f"metric names {taken} are columns of every row; rename them")
    row: Row = {"kind": kind, "iteration": int(iteration)}
    if step is not None:
        row["step"] = int(step)
    if when is not None:
        row["time"] = round(when, 3)
    return row | {name: plain(name, values[name]) for name in sorted(values)}


def _place(row: Row) -> tuple[str, int, int | None]:
    return row["kind"], row["iteration"], row.get("step")
