"""Files of records (see ``data.records``): written whole, or appended to by batches."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from tpmm_jax.data.records import Record, parse_lines, to_line
from tpmm_jax.errors import CorruptCheckpoint
from tpmm_jax.hosts import once
from tpmm_jax.store.digests import (
    advice,
    append_listed,
    compare,
    listing,
    read_listed,
    unlist,
    write_listed,
)
from tpmm_jax.store.files import storage_errors, write_file


def read_records(path: pathlib.Path, kind: type[Record]) -> list[Record]:
    """Returns the records of a finished file.

    Raises:
      CorruptCheckpoint: a line that holds none, or is not what was written; names the
        file and the line.
      StorageError: the file is missing or cannot be read.
    """
    return parse_lines(kind, read_listed(path).splitlines(), path)


def read_growing_records(path: pathlib.Path, kind: type[Record]) -> list[Record]:
    """Returns the records of a file that a run may be writing; [] if there is none.

    Raises:
      CorruptCheckpoint: as ``read_records``.
    """
    lines, listed = _lines(path)
    if not listed:
        # Of an older run, or of another's hand; the last line may be on its way.
        listed = sum(line.endswith(b"\n") for line in lines)
    return parse_lines(kind, lines[:listed], path)


def _lines(path: pathlib.Path) -> tuple[list[bytes], int]:
    """Returns the lines of a file, and how many of them are listed and as written."""
    known = listing(path.parent).get(path.name, [])
    if not path.exists():
        return [], 0
    with storage_errors(path):
        lines = path.read_bytes().splitlines(keepends=True)
    known = known[: len(lines)]
    if fault := compare(path, b"".join(lines[: len(known)]), known):
        raise CorruptCheckpoint(f"{fault}; {advice(path)}")
    return lines, len(known)


def write_records(
    path: pathlib.Path, records: Sequence[Any], *, replace: bool = False
) -> None:
    """Writes a file of records; whole or not at all.

    Args:
      replace: they may be others than before.
    """
    lines = [to_line(record) + "\n" for record in records]
    write_listed(path, "".join(lines).encode(), replace=replace)


def resume_records(
    path: pathlib.Path | None, kind: type[Record], whole: Callable[[int], int]
) -> list[Record]:
    """Returns the records that a file appended to by batches holds already.

    Those of a batch that a kill cut short are dropped, from the file too.

    Args:
      path: None: nothing is kept on the disk.
      whole: how many of so many records are those of whole batches.

    Raises:
      CorruptCheckpoint: a line is not what was written; names the file and the line.
    """
    if path is None:
        return []

    def cut() -> int:
        lines, listed = _lines(path)
        kept = lines[: whole(listed)]
        if len(kept) < listed == len(listing(path.parent)[path.name]):
            # In batches of another size they may come out otherwise.
            unlist(path, at=len(kept))
        if len(kept) < len(lines):
            write_file(path, lambda file: file.writelines(kept))
        return len(kept)

    count = once(cut, f"resume {path}")
    return parse_lines(kind, _lines(path)[0][:count], path)


def append_records(path: pathlib.Path | None, records: Sequence[Any], at: int) -> None:
    """Appends records behind the first ``at``, on the disk; without a path nothing."""
    if path is not None:
        append_listed(path, [to_line(record) for record in records], at)
