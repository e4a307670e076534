"""raters.json: how stored answers were rated, and by whom."""

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tpmm_jax.errors import CorruptCheckpoint
from tpmm_jax.store.digests import read_listed_json, write_listed_json

NAME = "raters.json"
# The files that raters fill, batch by batch.
ANSWERS, JUDGEMENTS = "evaluation.jsonl", "judgements.jsonl"
ROLLOUTS, PAIRS = "rollouts.jsonl", "pairs.jsonl"


@dataclass(frozen=True)
class RatersRecord:
    """What a start must know of the ratings that are there.

    Attributes:
      sizes: by file {iteration: how many prompts were rated at once, from it on}.
      rescoring: fields of the raters whose stored ratings are being replaced.
      earlier_labels: the last iteration whose pairs an earlier version of the scorer
        labelled; 0: none.
      earlier_margins: the last iteration whose margins an earlier version of their
        source gave; 0: none.
    """

    sizes: Mapping[str, Mapping[int, int]]
    rescoring: Sequence[str] = ()
    earlier_labels: int = 0
    earlier_margins: int = 0

    def size(self, file: str, iteration: int) -> int:
        """Returns how many prompts of an iteration's file were rated at once."""
        sizes = self.sizes[file]
        return sizes[max(first for first in sizes if first <= iteration)]


def read_record(workdir: pathlib.Path, batch_size: int) -> RatersRecord:
    """Returns a run's record; files to come are rated with ``batch_size``.

    Raises:
      CorruptCheckpoint: it does not hold one.
    """
    path = workdir / NAME
    found = RatersRecord({ANSWERS: {0: batch_size}, JUDGEMENTS: {0: batch_size}})
    if path.exists():
        found = _parse(path)
    sizes = {}
    for file, known in found.sizes.items():
        coming = 1 + max(rated_iterations(workdir, file), default=-1)
        kept = {first: size for first, size in known.items() if first < coming}
        if not kept or kept[max(kept)] != batch_size:
            kept[coming] = batch_size
        sizes[file] = kept
    return replace(found, sizes=sizes)


def earlier_labels(workdir: pathlib.Path) -> int:
    """Returns the last iteration that an earlier scorer labelled; 0: none."""
    path = workdir / NAME
    return _parse(path).earlier_labels if path.exists() else 0


def rated_iterations(workdir: pathlib.Path, file: str) -> list[int]:
    """Returns the iterations that have lines of a file, in order."""
    paths = workdir.glob(f"iterations/*/{file}")
    return sorted(int(p.parent.name) for p in paths if p.stat().st_size)


def write_record(workdir: pathlib.Path, record: RatersRecord) -> None:
    """Writes a run's record."""
    sizes = {
        file: {str(first): size for first, size in known.items()}
        for file, known in record.sizes.items()
    }
    row: dict[str, Any] = {
        "batch_size": sizes,
        "earlier_labels": record.earlier_labels,
        "rescoring": list(record.rescoring),
    }
    if record.earlier_margins:
        row["earlier_margins"] = record.earlier_margins
    write_listed_json(workdir / NAME, row, replace=True)


def _parse(path: pathlib.Path) -> RatersRecord:
    row = read_listed_json(path)
    try:
        sizes = {
            file: {int(k): int(v) for k, v in row["batch_size"][file].items()}
            for file in (ANSWERS, JUDGEMENTS)
        }
        labels, margins = row["earlier_labels"], row.get("earlier_margins", 0)
        record = RatersRecord(sizes, row["rescoring"], int(labels), int(margins))
        if not all(0 in known and min(known.values()) > 0 for known in sizes.values()):
            raise ValueError("no batch size of iteration 0")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CorruptCheckpoint(
            f"{path} is not what the run wrote ({type(error).__name__}: {error}); "
            "restore the file from a copy"
        ) from None
    return record
