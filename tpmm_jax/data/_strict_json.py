"""JSON and JSON Lines read strictly: each defect with its line, none repaired."""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpmm_jax.data._strict_object import MAX_DEPTH, appears_twice, parse_object
from tpmm_jax.data.problems import Place, Problems, at_line

MAX_ROW_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 1 << 30
# Python refuses integers of thousands of digits; a row's own check names the column.
_DECODER = json.JSONDecoder(parse_int=str)
_SPACE = re.compile(r"[ \t\r\n]*")
# Columns that tell an object that is one row from one that holds rows.
_ROW_COLUMNS = frozenset({"prompt", "chosen", "rejected", "messages", "prompt_ids"})
# The first lines tell JSON Lines from a document.
_LINES_TRIED = 20
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)


@dataclass(frozen=True)
class Row:
    """One row of a source and where it stood, such as "pairs.jsonl:12"."""

    data: dict[str, Any]
    origin: str


def read_json_lines(path: Path, name: str, problems: Problems) -> list[Row]:
    """One JSON object a line; ``name`` is the file as the user wrote it."""
    rows = []
    for origin, text, clean in _text_lines(path, name, problems):
        data = _parse_row(text, origin, problems)
        if data is not None and clean:
            rows.append(Row(data, origin))
    return rows


def read_text_lines(path: Path, name: str, problems: Problems) -> list[Row]:
    """One prompt a line, as the field "prompt"."""
    return [
        Row({"prompt": text}, origin)
        for origin, text, clean in _text_lines(path, name, problems)
        if clean
    ]


def read_json_document(path: Path, name: str, problems: Problems) -> list[Row]:
    """A list of objects, an object that holds one under "data" or "rows", or one row.

    A file of this suffix that holds JSON Lines is read as such. Each row's origin
    is the line on which it begins, with its number where it is not that line's first.
    """
    text = _read_document(path, name, problems)
    if text is None:
        return []
    try:
        if _is_row(json.loads(text, parse_int=str)):
            text = f"[{text}]"
        at = _array_start(text)
    except RecursionError:
        problems.add(name, f"nested deeper than {MAX_DEPTH} levels", fatal=True)
        return []
    except json.JSONDecodeError as error:
        if _looks_like_lines(text):
            return read_json_lines(path, name, problems)
        problems.add(at_line(name, error.lineno), _not_json(error), fatal=True)
        return []
    except ValueError as error:
        problems.add(name, str(error), fatal=True)
        return []
    return _document_rows(text, at, name, problems)


def _document_rows(text: str, at: int, name: str, problems: Problems) -> list[Row]:
    rows: list[Row] = []
    line, counted, number, last = 1, 0, 0, 0
    at = _skip_space(text, at)
    while text[at] != "]":
        line += text.count("\n", counted, at)
        counted = at
        # Several rows may stand on one line; each origin names one row.
        shown = f"{name}:{line}" + (f" row {number}" if line == last else "")
        origin = Place(shown, name, line, number)
        last, number = line, number + 1
        _, end = _DECODER.raw_decode(text, at)
        data = _parse_row(text[at:end], origin, problems)
        if data is not None:
            rows.append(Row(data, origin))
        at = _skip_space(text, end)
        if text[at] == ",":
            at = _skip_space(text, at + 1)
    return rows


def _array_start(text: str) -> int:
    """The position after the "[" that opens the rows of a valid document."""
    at = _skip_space(text, 0)
    if text[at] == "[":
        return at + 1
    keys: list[str] = []
    found: dict[str, int] = {}
    if text[at] == "{":
        at = _skip_space(text, at + 1)
        while text[at] == '"':
            key, at = _DECODER.raw_decode(text, at)
            keys.append(key)
            at = _skip_space(text, _skip_space(text, at) + 1)
            if key in ("data", "rows") and text[at] == "[":
                if found:
                    raise ValueError(
                        f"holds two lists of rows, {next(iter(found))!r} and "
                        f"{key!r}; leave one of them"
                    )
                found[key] = at + 1
            if keys.count(key) > 1:
                raise ValueError(appears_twice(key))
            _, at = _DECODER.raw_decode(text, at)
            at = _skip_space(text, at)
            if text[at] == ",":
                at = _skip_space(text, at + 1)
    if found:
        return next(iter(found.values()))
    came = f"an object with the keys {', '.join(keys[:8])}" if keys else "another value"
    raise ValueError(
        f'holds {came}; wanted a list of objects, or {{"data": [...]}} or '
        '{"rows": [...]}'
    )


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _is_row(value: Any) -> bool:
    """Whether a document is a single row, and not an object that should hold rows."""
    if not isinstance(value, dict):
        return False
    if any(isinstance(value.get(key), list) for key in ("data", "rows")):
        return False
    if not _ROW_COLUMNS.isdisjoint(value):
        return True
    held = any(isinstance(item, list | dict) for item in value.values())
    return bool(value) and not held and {"data", "rows"}.isdisjoint(value)


def _looks_like_lines(text: str) -> bool:
    """Whether a file that is no document has an object a line, some of them broken."""
    lines = text.lstrip().split("\n", _LINES_TRIED)[:_LINES_TRIED]
    some = [line for line in lines if line.strip()]
    if len(some) < 2 or some[0].startswith("[") or some[0].rstrip()[-1] in "[{,:":
        return False
    # The rows of a broken document end in commas, but for the last.
    return _is_object(some[0]) or 2 * sum(map(_is_object, some[1:])) >= len(some)


def _is_object(text: str) -> bool:
    try:
        return isinstance(_DECODER.decode(text), dict)
    except (ValueError, RecursionError):
        return False


def _parse_row(text: str, origin: str, problems: Problems) -> dict[str, Any] | None:
    try:
        if len(text.encode()) > MAX_ROW_BYTES:
            raise ValueError(_too_long())
        return parse_object(text)
    except RecursionError:
        problems.add(origin, f"nested deeper than {MAX_DEPTH} levels")
    except json.JSONDecodeError as error:
        cut = " (the line seems cut off)" if error.pos >= len(text.rstrip()) else ""
        problems.add(origin, f"{_not_json(error)}{cut}")
    except ValueError as error:
        problems.add(origin, str(error), field=getattr(error, "field", None))
    return None


def _open(path: Path) -> io.BufferedIOBase:
    if path.suffix.lower() == ".gz":
        return gzip.GzipFile(path, "rb")
    return path.open("rb")


def _too_long() -> str:
    return f"longer than {MAX_ROW_BYTES // (1 << 20)} MiB"


def _raw_lines(
    path: Path, name: str, problems: Problems
) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers; one that is too long is noted and never held."""
    number = 0
    try:
        with _open(path) as file:
            while raw := file.readline(MAX_ROW_BYTES + 2):
                number += 1
                if len(raw) <= MAX_ROW_BYTES or raw.endswith(b"\n"):
                    yield number, raw
                    continue
                problems.add(at_line(name, number), f"the line is {_too_long()}")
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(MAX_ROW_BYTES)
    except _GZIP_ERRORS as error:
        problems.add(at_line(name, number + 1), _damaged(error), fatal=True)


def _damaged(error: BaseException) -> str:
    return f"the compressed file is cut off or damaged ({error})"


def _text_lines(
    path: Path, name: str, problems: Problems
) -> Iterator[tuple[str, str, bool]]:
    """(origin, text, whether the bytes were in order) of each line that can be read.

    Blank lines at the end of a file are layout; one inside is a lost row.
    """
    blank: list[int] = []
    for number, raw in _raw_lines(path, name, problems):
        origin, clean = at_line(name, number), True
        if number == 1 and raw.startswith(_UTF16):
            problems.add(origin, "the file is UTF-16; save it as UTF-8", fatal=True)
            return
        if number == 1 and raw.startswith(codecs.BOM_UTF8):
            problems.add(origin, "begins with a byte order mark; save without BOM")
            raw, clean = raw[len(codecs.BOM_UTF8) :], False
        if not raw.strip():
            blank.append(number)
            continue
        for empty in blank:
            problems.add(at_line(name, empty), "the line is empty; remove it")
        blank.clear()
        if b"\0" in raw:
            problems.add(origin, f"holds a NUL byte at column {raw.index(0) + 1}")
            continue
        try:
            yield origin, raw.decode().rstrip("\r\n"), clean
        except UnicodeDecodeError as error:
            problems.add(origin, _not_utf8(raw, error))


def _not_json(error: json.JSONDecodeError) -> str:
    return f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"


def _not_utf8(raw: bytes, error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{raw[error.start]:02x} at byte {error.start + 1}"


def _read_document(path: Path, name: str, problems: Problems) -> str | None:
    try:
        with _open(path) as file:
            raw = file.read(MAX_DOCUMENT_BYTES + 1)
    except _GZIP_ERRORS as error:
        problems.add(name, _damaged(error), fatal=True)
        return None
    fault = None
    if len(raw) > MAX_DOCUMENT_BYTES:
        fault = f"larger than {MAX_DOCUMENT_BYTES >> 20} MiB; convert it to JSON Lines"
    elif raw.startswith(_UTF16):
        fault = "the file is UTF-16; save it as UTF-8"
    elif raw.startswith(codecs.BOM_UTF8):
        fault = "begins with a byte order mark; save without BOM"
    elif b"\0" in raw:
        fault = "holds a NUL byte"
        name = _at_line(name, raw, raw.index(0))
    elif not raw.strip():
        fault = "the file is empty"
    if fault is None:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            fault = _not_utf8(raw, error)
            name = _at_line(name, raw, error.start)
    problems.add(name, fault, fatal=True)
    return None


def _at_line(name: str, raw: bytes, at: int) -> str:
    return at_line(name, raw.count(b"\n", 0, at) + 1)
