"""A file of JSON lines that is whole after every call, and its number format."""

import contextlib
import io
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

from tpmm_jax.errors import BadInput, StorageError

Row = dict[str, Any]
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Lines:
    """One append-only file of JSON lines; opening it repairs a torn last line."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        if path.exists() and _torn(path.read_bytes()):
            self._replace(parsed(path))
        self._file = self._opened()

    def _opened(self) -> io.FileIO:
        try:
            return io.FileIO(self._path, "ab")
        except OSError as error:
            raise refused(self._path, error) from error

    def append(self, row: Row) -> None:
        """Hand one row to the operating system; a failed write leaves no part of it."""
        line = _line(row)
        start = self._file.tell()
        try:
            if self._file.write(line) != len(line):
                raise OSError("only a part of the row was written")
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise refused(self._path, error) from error

    def read(self) -> list[Row]:
        """The rows on the disk."""
        return [row for row, _ in parsed(self._path)]

    def rewrite(self, keep: Callable[[list[Row]], list[bool]]) -> int:
        """Keep the rows marked True, byte for byte; return how many went."""
        pairs = parsed(self._path)
        marks = keep([row for row, _ in pairs])
        kept = [pair for pair, mark in zip(pairs, marks, strict=True) if mark]
        if len(kept) < len(pairs):
            self._file.close()
            self._replace(kept)
            self._file = self._opened()
        return len(pairs) - len(kept)

    def _replace(self, pairs: list[tuple[Row, bytes]]) -> None:
        temporary = self._path.with_name(self._path.name + ".tmp")
        try:
            with open(temporary, "wb") as file:
                file.writelines(line for _, line in pairs)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except OSError as error:
            raise refused(self._path, error) from error

    def flush(self) -> None:
        """Wait until the disk has everything."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise refused(self._path, error) from error

    def close(self) -> None:
        """Close the file; reading and rewriting need it open."""
        self._file.close()


def plain(name: str, value: Any) -> Any:
    """A value as JSON holds it: nan and the infinities become strings."""
    if isinstance(value, (list, tuple)):
        return [plain(name, item) for item in value]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, (str, int, float)):
        return value
    raise TypeError(f"metric {name!r} is a {type(value)}; wanted a number, str or list")


def restored(value: Any) -> Any:
    """The inverse of plain for a row read from the disk."""
    if isinstance(value, dict):
        return {
            key: item if key == "kind" else restored(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [restored(item) for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _line(row: Row) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def parsed(path: pathlib.Path) -> list[tuple[Row, bytes]]:
    """Rows of a file with their bytes; a torn last line is left out.

    Raises:
        BadInput: any other line that is not a row; names the file and the line.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    pairs = []
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not {"kind", "iteration"} <= row.keys():
                raise ValueError("no kind and iteration")
        except ValueError as error:
            if number == len(lines) and _torn(data):
                break
            raise BadInput(
                f"{path}, line {number} is not a metric row ({error}); wanted one JSON "
                "object with kind and iteration. Delete the line, or move the file away"
            ) from error
        pairs.append((restored(row), line.rstrip(b"\r\n") + b"\n"))
    return pairs


def _torn(data: bytes) -> bool:
    return bool(data) and not data.endswith(b"\n")


def refused(path: pathlib.Path, error: OSError) -> StorageError:
    """The error of a write that the disk did not take."""
    return StorageError(
        f"cannot write {path}: {error}. Free some space or make the folder writable, "
        "then run the same command again"
    )
