"""TensorBoard mirror of the metric rows: derived data, rebuilt at every start.

tensorboardX's SummaryWriter appends from a thread, through a queue that blocks for
good once a full disk has killed that thread, and its purge_step knows one step axis
while a run has two (step and iteration). So its event file is written here directly,
one event per row, and a resumed run replaces the file by the rows that it kept.
"""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

SUFFIX = ".tpmm"
_FLUSH_SECONDS = 15.0
_NOT_METRICS = ("kind", "iteration", "step", "time")


class TensorBoard:
    """The event file of one start of a run.

    Args:
        folder: where event files go; earlier files of this class there are removed,
            files of others are left alone.
    """

    def __init__(self, folder: pathlib.Path):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
            old.unlink()
        self._events = EventsWriter(str(folder / "events"), SUFFIX)
        self._flushed = time.monotonic()
        self._shift: dict[str, tuple[int, int]] = {}

    def add(self, row: Mapping[str, Any], *, prefix: str = "", when: float) -> None:
        """Write the numbers of one row; strings and lists have no place in a curve.

        Args:
            row: as in metrics.jsonl; tag "train/loss" is kind "train", name "loss".
            prefix: put before the kind, such as "timing/".
            when: seconds since the epoch.
        """
        tag = prefix + row["kind"]
        scalars = [
            Summary.Value(tag=f"{tag}/{name}", simple_value=float(value))
            for name, value in row.items()
            if name not in _NOT_METRICS and isinstance(value, (int, float))
        ]
        if not scalars:
            return
        step = self._global_step(tag, row["iteration"], row.get("step"))
        self._events.write_event(
            Event(wall_time=when, step=step, summary=Summary(value=scalars))
        )
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def _global_step(self, tag: str, iteration: int, step: int | None) -> int:
        """Place a row on the x axis; steps counted from 0 again follow the last."""
        if step is None:
            return iteration
        shift, last = self._shift.get(tag, (0, -1))
        if shift + step <= last:
            shift = last + 1 - min(step, 1)
        self._shift[tag] = (shift, shift + step)
        return shift + step

    def flush(self) -> None:
        """Put everything written so far on the disk."""
        self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close the file."""
        self._events.close()
