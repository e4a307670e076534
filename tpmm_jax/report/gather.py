"""What the report reads of a run's folder: every file, whole, or an error by name.

A part that a run does not have (older runs, offline runs, unfinished runs) is empty.
"""

import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tpmm_jax.data.records import LabelledPair, Rollout
from tpmm_jax.errors import BadInput, CorruptCheckpoint, TpmmError, nearest_path
from tpmm_jax.log.jsonl import parsed
from tpmm_jax.log.metrics import METRICS, TIMING, find_labels
from tpmm_jax.store.digests import read_listed_json, read_npz
from tpmm_jax.store.files import read_lines_repaired
from tpmm_jax.store.records import read_growing_records

Row = dict[str, Any]
# Where a row of metrics.jsonl stands, kept for the errors that name it.
_LINE = "_line"
_ARRAYS = "arrays [pairs, 2]"
_WRITTEN = "what the run wrote there"


@dataclass(frozen=True)
class RunData:
    """One run, as its files tell it.

    Attributes:
      workdir: its folder.
      label: what it is called on the page.
      config: config.json; {} if there is none.
      metrics, timing: all rows of the two files, in order.
      sessions: rows of sessions.jsonl; [] of a run that kept none.
      references: iteration -> reference.json.
      lost: iterations that were evaluated (there is a summary.json), but of which
        metrics.jsonl has no row: it was removed or cut.
    """

    workdir: pathlib.Path
    label: str
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Row] = ()
    timing: Sequence[Row] = ()
    sessions: Sequence[Row] = ()
    references: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    lost: Sequence[int] = ()

    @property
    def iterations(self) -> list[Row]:
        """Rows of kind "iteration", one an iteration, in order."""
        rows = {r["iteration"]: r for r in self.metrics if r["kind"] == "iteration"}
        return [rows[t] for t in sorted(rows)]

    @property
    def last(self) -> Row:
        """The row of the last finished iteration; {} if none is."""
        return self.iterations[-1] if self.iterations else {}

    def number(self, row: Row, name: str, file: str = METRICS) -> float:
        """A finite number of a row, nan if it is missing or not finite.

        Raises:
          BadInput: it is not a number; names the file, the line and the field.
        """
        value = row.get(name, math.nan)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _wrong(self.workdir / file, row, name, "a number")
        return float(value) if math.isfinite(value) else math.nan

    def interval(self, row: Row, name: str) -> tuple[float, float]:
        """The 95 % interval of a metric, nan where there is none."""
        stem = name.removesuffix("/mean")
        return self.number(row, f"{stem}/low"), self.number(row, f"{stem}/high")

    def warnings(self) -> list[tuple[int, str]]:
        """(iteration, what the reward-hacking watch said), the last one's first."""
        found = []
        for row in reversed(self.iterations):
            texts = row.get("watch", [])
            if not (isinstance(texts, list) and all(isinstance(t, str) for t in texts)):
                raise _wrong(self.workdir / METRICS, row, "watch", "a list of texts")
            found += [(row["iteration"], text) for text in texts]
        return found

    def seconds(self, row: Row) -> float:
        """What a row of timing.jsonl took; 0 if it does not say."""
        found = self.number(row, "seconds", TIMING)
        return 0.0 if math.isnan(found) else found

    def names(self) -> list[str]:
        """Every name in the iterations' rows, in the order of first use."""
        found = dict.fromkeys(name for row in self.iterations for name in row)
        return [name for name in found if name != _LINE]

    def sets(self) -> list[str]:
        """Names of the evaluation's prompt sets; "" is the run's own."""
        names = [self.names()]
        # Offline, answers may have a length and no reward.
        heads = ("reward/mean", "length/mean")
        own = [""] if any(head in names[0] for head in heads) else []
        further = [name for h in heads for name in find_labels(names, "", f"/{h}")]
        return own + list(dict.fromkeys(further))

    def rewarded(self) -> list[str]:
        """Those of the sets whose answers have a reward."""
        names = self.names()
        return [s for s in self.sets() if f"{s}/reward/mean".lstrip("/") in names]

    def samples(self, iteration: int, of_set: str = "") -> list[Rollout]:
        """The evaluation's answers; [] if there are none.

        Raises:
          CorruptCheckpoint: a line without rewards where others have them, or no
            answers; names the file, line and field.
        """
        if "/" in of_set or os.sep in of_set:
            return []  # a metric of another meaning, or of another's hand
        name = f"evaluation-{of_set}.jsonl" if of_set else "evaluation.jsonl"
        path = self.workdir / "iterations" / f"{iteration:03d}" / name
        answers = read_growing_records(path, Rollout)
        rated = [row.rewards is not None for row in answers]
        for number, has_rewards in enumerate(rated, start=1):
            if any(rated) and not has_rewards:
                raise CorruptCheckpoint(
                    f"{path}, line {number}: rewards is missing; restore the file "
                    "from a copy"
                )
        return answers

    def margins(self, iteration: int) -> np.ndarray:
        """The rewards' margins of an iteration's training pairs; empty if none has one.

        Raises:
          CorruptCheckpoint: a line of pairs.jsonl that holds no pair; names it.
        """
        path = self.workdir / "iterations" / f"{iteration:03d}" / "pairs.jsonl"
        pairs = read_growing_records(path, LabelledPair)
        kept = [p.margin for p in pairs if not p.held_out and p.margin is not None]
        return np.asarray(kept, np.float64)

    def held_out(self, iteration: int) -> dict[str, np.ndarray]:
        """Arrays of held_out.npz, [M, 2] nats; {} if there is none.

        Raises:
          CorruptCheckpoint: a file that does not hold them; names it.
        """
        path = self.workdir / "iterations" / f"{iteration:03d}" / "held_out.npz"
        if not path.exists():
            return {}
        arrays = read_npz(path)
        for name, array in arrays.items():
            if name.endswith("_MN") and (array.ndim != 2 or array.shape[1] != 2):
                raise _damaged(f"{path}: {name} has shape {array.shape}", _ARRAYS)
        return arrays


def read_run(workdir: str | os.PathLike[str], label: str | None = None) -> RunData:
    """Reads a run's folder.

    Raises:
      BadInput, CorruptCheckpoint: it is not a run, or a file of it is damaged.
    """
    folder = pathlib.Path(workdir)
    if not (folder / METRICS).exists() and not (folder / "config.json").exists():
        what = "does not hold a run" if folder.is_dir() else "is not a directory"
        raise BadInput(
            f"{folder} {what}: wanted the --workdir of tpmm train, "
            f"with config.json and {METRICS} in it{nearest_path(folder)}"
        )
    config = folder / "config.json"
    metrics = _rows(folder / METRICS)
    logged = {row["iteration"] for row in metrics if row["kind"] == "iteration"}
    evaluated = _by_iteration(folder, "summary.json").keys()
    references = _by_iteration(folder, "reference.json")
    return RunData(
        workdir=folder,
        label=label or folder.resolve().name,
        config=_config(config) if config.exists() else {},
        metrics=metrics,
        timing=_rows(folder / TIMING),
        sessions=list(_json_lines(folder / "sessions.jsonl")),
        references={t: _reference(path) for t, path in references.items()},
        lost=sorted(evaluated - logged),
    )


def _config(path: pathlib.Path) -> Row:
    config = _object(path)
    for name in ("reference", "evaluation"):
        if not isinstance(config.get(name, {}), dict):
            raise _damaged(f"{path}: {name} is {config[name]!r}", "a JSON object")
    return config


def _rows(path: pathlib.Path) -> list[Row]:
    rows = [row | {_LINE: n} for n, row in enumerate(parsed(path), start=1)]
    for row in rows:
        if not isinstance(row["iteration"], int) or row["iteration"] < 0:
            raise _wrong(path, row, "iteration", "a whole number from 0")
    return rows


def _by_iteration(folder: pathlib.Path, name: str) -> dict[int, pathlib.Path]:
    """Returns {iteration: its file of that name}."""
    paths = sorted(folder.glob(f"iterations/*/{name}"))
    return {int(p.parent.name): p for p in paths if p.parent.name.isdigit()}


def _reference(path: pathlib.Path) -> Row:
    record = _object(path)
    groups, weights = record.get("groups", []), record.get("weights", [])
    try:
        good = len(groups) == len(weights) and np.asarray(weights, float).ndim == 2
    except (TypeError, ValueError):
        good = False
    if weights and not good:
        raise _damaged(
            f"{path}: groups and weights do not fit each other",
            "for each group one weight per checkpoint",
        )
    return record


def _object(path: pathlib.Path) -> Row:
    value = read_listed_json(path)
    if not isinstance(value, dict):
        raise _damaged(f"{path}: holds {type(value).__name__}", "a JSON object")
    return value


def _json_lines(path: pathlib.Path) -> Iterator[Row]:
    lines = read_lines_repaired(path, truncate=False)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            found = f"{path}, line {number} is not JSON ({error})"
            raise _damaged(found, _WRITTEN, BadInput) from None
        if not isinstance(row, dict):
            found = f"{path}, line {number} is not a JSON object"
            raise _damaged(found, _WRITTEN, BadInput)
        yield row


def _wrong(path: pathlib.Path, row: Row, name: str, wanted: str) -> TpmmError:
    found = f"{path}, line {row[_LINE]}: {name} is {row[name]!r}"
    return _damaged(found, wanted, BadInput)


def _damaged(
    found: str, wanted: str, kind: type[TpmmError] = CorruptCheckpoint
) -> TpmmError:
    return kind(f"{found}; wanted {wanted}. Restore the file from a copy")
