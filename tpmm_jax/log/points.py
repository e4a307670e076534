"""A row of metrics as points of curves, one axis of steps for each kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

_NOT_METRICS = ("kind", "iteration", "step", "time")


@dataclass(frozen=True)
class Points:
    """The numbers of a row.

    Attributes:
      tag: what stands before their names: the row's kind, with a prefix.
      step: where they are on the x axis.
      values: name -> number; strings and lists have no place in a curve.
    """

    tag: str
    step: int
    values: Mapping[str, float]


class Numbering:
    """Places rows on an x axis: a run has two, its iterations and their steps."""

    def __init__(self) -> None:
        self._shift: dict[str, tuple[int, int]] = {}

    def points(self, row: Mapping[str, Any], prefix: str) -> Points:
        """Returns the points of a row, the next one of its kind.

        Args:
          row: as in metrics.jsonl; tag "train/loss" is kind "train", name "loss".
          prefix: put before the kind, such as "timing/".
        """
        tag = prefix + row["kind"]
        values = {
            name: float(value)
            for name, value in row.items()
            if name not in _NOT_METRICS and isinstance(value, (int, float))
        }
        return Points(tag, self._step(tag, row["iteration"], row.get("step")), values)

    def _step(self, tag: str, iteration: int, step: int | None) -> int:
        """Steps counted from 0 again follow the last."""
        if step is None:
            return iteration
        shift, last = self._shift.get(tag, (0, -1))
        if shift + step <= last:
            shift = last + 1 - min(step, 1)
        self._shift[tag] = (shift, shift + step)
        return shift + step


@runtime_checkable
class Mirror(Protocol):
    """A place where the rows of a run are shown too."""

    def open(self) -> None:
        """Makes ready, before the first row; by process 0 alone, as all that follows.

        Raises:
          BadInput: it cannot be used.
        """

    def begin(self) -> None:
        """All rows that are on the disk follow, from the first, and then new ones."""

    def add(self, row: Mapping[str, Any], *, prefix: str, when: float) -> None:
        """Takes the next row.

        Args:
          prefix: put before its kind.
          when: seconds since the epoch.
        """

    def flush(self) -> None:
        """Puts everything taken so far where it belongs."""

    def end(self) -> None:
        """Rows on the disk are about to change; ``begin`` comes next, or ``close``."""

    def close(self, failed: bool) -> None:
        """The run ends, or is stopped, or has failed."""
