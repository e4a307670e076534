"""JSON and JSON Lines read strictly: each defect with its line, none repaired."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpmm_jax.data._strict_object import MAX_DEPTH, appears_twice, parse_object
from tpmm_jax.data._text_files import (
    MAX_ROW_BYTES,
    read_document,
    text_lines,
    too_long,
)
from tpmm_jax.data.problems import Place, Problems, at_line

# Python refuses integers of thousands of digits; a row's own check names the column.
_DECODER = json.JSONDecoder(parse_int=str)
_SPACE = re.compile(r"[ \t\r\n]*")
# Columns that tell an object that is one row from one that holds rows.
_ROW_COLUMNS = frozenset({"prompt", "chosen", "rejected", "messages", "prompt_ids"})
# The first lines tell JSON Lines from a document.
_LINES_TRIED = 20


@dataclass(frozen=True)
class Row:
    """One row of a source and where it stood, such as "pairs.jsonl:12"."""

    data: dict[str, Any]
    origin: Place


def read_json_lines(path: Path, name: str, problems: Problems) -> list[Row]:
    """One JSON object per line; ``name`` is the file as the user wrote it."""
    lines = text_lines(path, name, problems)
    rows = [_parse_row(text, origin, problems) for origin, text in lines]
    return [row for row in rows if row is not None]


def read_text_lines(path: Path, name: str, problems: Problems) -> list[Row]:
    """One prompt per line, as the field "prompt"."""
    lines = text_lines(path, name, problems)
    return [Row({"prompt": text}, origin) for origin, text in lines]


def read_json_document(path: Path, name: str, problems: Problems) -> list[Row]:
    """A list of objects, an object that holds one under "data" or "rows", or one row.

    A file of this suffix that holds JSON Lines is read as such. Each row's origin
    is the line on which it begins, with its number where it is not that line's first.
    """
    text = read_document(path, name, problems)
    if text is None:
        return []
    try:
        if _is_row(json.loads(text, parse_int=str)):
            text = f"[{text}]"
        start = _rows_start(text)
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
    rows, line, counted, last = [], 1, 0, 0
    for number, (_, at, end) in enumerate(_values(text, start)):
        line += text.count("\n", counted, at)
        # Several rows may stand on one line; each origin names one row.
        shown = f"{name}:{line}" + (f" row {number}" if line == last else "")
        rows.append(
            _parse_row(text[at:end], Place(shown, name, line, number), problems)
        )
        counted, last = at, line
    return [row for row in rows if row is not None]


def _rows_start(text: str) -> int:
    """The position of the "[" that opens the rows of a valid document."""
    front = _skip_space(text, 0)
    if text[front] == "[":
        return front
    keys: list[str] = []
    starts: dict[str, int] = {}
    for key, at, _ in _values(text, front) if text[front] == "{" else ():
        if key in ("data", "rows") and text[at] == "[":
            if starts:
                raise ValueError(
                    f"holds two lists of rows, {next(iter(starts))!r} and {key!r}; "
                    "leave one of them"
                )
            starts[key] = at
        if key in keys:
            raise ValueError(appears_twice(key))
        keys.append(key)
    if starts:
        return next(iter(starts.values()))
    came = f"an object with the keys {', '.join(keys[:8])}" if keys else "another value"
    raise ValueError(
        f'holds {came}; wanted a list of objects, or {{"data": [...]}} or '
        '{"rows": [...]}'
    )


def _values(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    """(key, beginning, end) of each value of the list or object at ``at``.

    A list's values have the key "".
    """
    of_object, key = text[at] == "{", ""
    at = _skip_space(text, at + 1)
    while text[at] not in "]}":
        if of_object:
            key, end = _DECODER.raw_decode(text, at)
            at = _skip_space(text, _skip_space(text, end) + 1)
        _, end = _DECODER.raw_decode(text, at)
        yield key, at, end
        at = _skip_comma(text, end)


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _skip_comma(text: str, at: int) -> int:
    """The position of what follows a value: the next one, or a closing bracket."""
    at = _skip_space(text, at)
    return _skip_space(text, at + 1) if text[at] == "," else at


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
    """Whether a file that is not a document holds one object per line, some broken."""
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


def _parse_row(text: str, origin: Place, problems: Problems) -> Row | None:
    try:
        if len(text.encode()) > MAX_ROW_BYTES:
            raise ValueError(too_long())
        return Row(parse_object(text), origin)
    except RecursionError:
        problems.add(origin, f"nested deeper than {MAX_DEPTH} levels")
    except json.JSONDecodeError as error:
        cut = " (the line seems cut off)" if error.pos >= len(text.rstrip()) else ""
        problems.add(origin, f"{_not_json(error)}{cut}")
    except ValueError as error:
        problems.add(origin, str(error), field=getattr(error, "field", None))
    return None


def _not_json(error: json.JSONDecodeError) -> str:
    return f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
