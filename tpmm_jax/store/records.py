"""Files of records (see ``data.records``): written whole, or appended to by batches."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from tpmm_jax.data.records import Record, parse_lines, to_line
from tpmm_jax.store.files import (
    append_lines,
    read_lines_repaired,
    storage_errors,
    write_text,
)


def read_records(path: pathlib.Path, kind: type[Record]) -> list[Record]:
    """Returns the records of a finished file.

    Raises:
      CorruptCheckpoint: a line that holds none; names the file and the line.
      StorageError: the file is missing or cannot be read.
    """
    with storage_errors(path):
        lines = path.read_bytes().splitlines()
    return parse_lines(kind, lines, path)


def write_records(path: pathlib.Path, records: Sequence[Any]) -> None:
    """Writes a file of records; whole or not at all."""
    write_text(path, "".join(to_line(record) + "\n" for record in records))


def resume_records(
    path: pathlib.Path | None, kind: type[Record], whole: Callable[[int], int]
) -> list[Record]:
    """Returns the records that a file appended to by batches holds already.

    Those of a batch that a kill cut short are dropped, from the file too.

    Args:
      path: None: nothing is kept on the disk.
      whole: how many of so many records are those of whole batches.
    """
    if path is None:
        return []
    lines = read_lines_repaired(path)
    kept = lines[: whole(len(lines))]
    if len(kept) < len(lines):
        write_text(path, "".join(line + "\n" for line in kept))
    return parse_lines(kind, kept, path)


def append_records(path: pathlib.Path | None, records: Sequence[Any]) -> None:
    """Appends records and flushes them; without a path does nothing."""
    if path is not None:
        append_lines(path, [to_line(record) for record in records])
