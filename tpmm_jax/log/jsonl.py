"""Rows of metrics as JSON lines: their number format, reading and dropping them."""

import contextlib
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

from tpmm_jax.errors import BadInput
from tpmm_jax.store.files import storage_errors, write_file

Row = dict[str, Any]
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def rewrite(path: pathlib.Path, keep: Callable[[Row], bool]) -> int:
    """Keeps the rows for which keep(row) is true, byte for byte; mends a torn end.

    Returns:
        How many rows went.
    """
    data = _read(path)
    pairs = _parse(data, path)
    kept = [line for row, line in pairs if keep(row)]
    whole = b"".join(kept)
    if data != whole:
        write_file(path, lambda file: file.write(whole))
    return len(pairs) - len(kept)


def plain(name: str, value: Any) -> Any:
    """A value as JSON holds it: nan and the infinities become strings."""
    if isinstance(value, (list, tuple)):
        return [plain(name, item) for item in value]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
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


def parsed(path: pathlib.Path) -> list[Row]:
    """Rows of a file; a torn last line is left out.

    Raises:
        BadInput: any other line that is not a row; names the file and the line.
    """
    return [row for row, _ in lines_of(path)]


def lines_of(path: pathlib.Path) -> list[tuple[Row, bytes]]:
    """As ``parsed``, each row with its line."""
    return _parse(_read(path), path)


def readable(path: pathlib.Path) -> list[tuple[Row, bytes]]:
    """As ``lines_of``, without the lines that hold no row."""
    found = []
    for line in _read(path).splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            found.append((_row(line), line + b"\n"))
    return found


def _read(path: pathlib.Path) -> bytes:
    with storage_errors(path):
        return path.read_bytes() if path.exists() else b""


def _row(line: bytes) -> Row:
    row = json.loads(line)
    if not isinstance(row, dict) or not {"kind", "iteration"} <= row.keys():
        raise ValueError("no kind and iteration")
    return row


def _parse(data: bytes, path: pathlib.Path) -> list[tuple[Row, bytes]]:
    pairs = []
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = _row(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines) and not data.endswith(b"\n"):
                break
            raise BadInput(
                f"{path}, line {number} is not a metric row ({error}); wanted one JSON "
                "object with kind and iteration. Restore the file from a copy, or run "
                f"`tpmm repair {_workdir(path)}`"
            ) from error
        pairs.append((restored(row), line.rstrip(b"\r\n") + b"\n"))
    return pairs


def _workdir(path: pathlib.Path) -> pathlib.Path:
    """The run's folder that a file of rows belongs to."""
    inside = path.parent.parent.name == "iterations"
    return path.parents[2] if inside else path.parent
