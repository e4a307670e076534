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

from tpmm_jax.log.points import Numbering
from tpmm_jax.store.files import storage_errors

SUFFIX = ".tpmm"
_FLUSH_SECONDS = 15.0


class TensorBoard:
    """The event file of one start of a run.

    Args:
        folder: where event files go; earlier files of this class there are removed,
            files of others are left alone.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._events: EventsWriter | None = None

    def open(self) -> None:
        """The first row makes the file."""

    def begin(self) -> None:
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            for old in self._folder.glob(f"events.out.tfevents.*{SUFFIX}"):
                old.unlink()
            self._events = EventsWriter(str(self._folder / "events"), SUFFIX)
        self._flushed = time.monotonic()
        self._numbering = Numbering()

    def add(self, row: Mapping[str, Any], *, prefix: str = "", when: float) -> None:
        points = self._numbering.points(row, prefix)
        scalars = [
            Summary.Value(tag=f"{points.tag}/{name}", simple_value=value)
            for name, value in points.values.items()
        ]
        if not scalars or self._events is None:
            return
        event = Event(wall_time=when, step=points.step, summary=Summary(value=scalars))
        with storage_errors(self._folder):
            self._events.write_event(event)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._events is not None:
            with storage_errors(self._folder):
                self._events.flush()
            self._flushed = time.monotonic()

    def end(self) -> None:
        if self._events is not None:
            with storage_errors(self._folder):
                self._events.close()
            self._events = None

    def close(self, failed: bool) -> None:
        self.end()
