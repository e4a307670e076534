"""One JSON object, parsed without what JSON readers disagree about."""

import json
import math
import re
from typing import Any

from tpmm_jax.data.problems import RowFault

MAX_DEPTH = 32
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]')


def parse_object(text: str) -> dict[str, Any]:
    """Parse one JSON object, refusing what JSON readers disagree about.

    Raises:
      ValueError: not an object, a repeated key, NaN or infinity, an integer past 64
        bits, a NUL or a lone surrogate in a text, or nesting deeper than MAX_DEPTH;
        a RowFault where one column is concerned.
    """
    _check_depth(text)
    checks = _Checks()
    value = json.loads(
        text,
        object_pairs_hook=checks.unique_keys,
        parse_constant=checks.refuse_constant,
        parse_float=checks.finite_float,
        parse_int=checks.small_int,
    )
    if checks.first is not None:
        raise _with_column(value, checks.first)
    if not isinstance(value, dict):
        raise ValueError(f"the row is {json_type(value)}; wanted an object {{...}}")
    # Only an escape can bring either past the checks on the raw bytes.
    if "\\u" in text:
        for key, item in value.items():
            _check_texts(key, f"{key!r}"[:80], key)
            _check_texts(item, key, key)
    return value


def json_type(value: object) -> str:
    """The JSON name of a value's type, for messages."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text"}
    names |= {list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _check_depth(text: str) -> None:
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        found = match.group()
        if found in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        elif found in "]}":
            depth -= 1


def _with_column(row: Any, first: RowFault) -> RowFault:
    """A fault of a row with the column that holds it."""
    if isinstance(row, RowFault):
        return row
    for column, value in row.items() if isinstance(row, dict) else ():
        if found := _first_fault(value):
            return RowFault(f"field {column!r}: {found}", column)
    return RowFault(str(first))


def _first_fault(value: Any) -> RowFault | None:
    if isinstance(value, RowFault):
        return value
    inner = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return None
    return next((found for item in inner if (found := _first_fault(item))), None)


def appears_twice(key: str) -> str:
    """What is said of a key that an object holds twice."""
    return f"field {key!r} appears twice in one object"


class _Checks:
    """What json.loads calls on each object and number.

    A fault stands for the value, since json does not say where in a row that is.
    """

    def __init__(self) -> None:
        self.first: RowFault | None = None

    def _fault(self, text: str, field: str | None = None) -> RowFault:
        fault = RowFault(text, field)
        self.first = self.first or fault
        return fault

    def unique_keys(self, items: list[tuple[str, Any]]) -> dict[str, Any] | RowFault:
        result = dict(items)
        if len(result) == len(items):
            return result
        keys = [key for key, _ in items]
        twice = min(key for key in keys if keys.count(key) > 1)
        return self._fault(appears_twice(twice), twice)

    def refuse_constant(self, text: str) -> RowFault:
        return self._fault(f"{text} is not JSON; write null or leave the field out")

    def finite_float(self, text: str) -> float | RowFault:
        value = float(text)
        if math.isfinite(value):
            return value
        return self._fault(f"the number {text[:24]} does not fit a float")

    def small_int(self, text: str) -> int | RowFault:
        if len(text) <= 20 and -(2**63) <= int(text) < 2**64:
            return int(text)
        return self._fault(f"the integer {text[:24]}... does not fit 64 bits")


def _check_texts(value: object, path: str, field: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_texts(key, f"{path}.{key!r}"[:80], field)
            _check_texts(item, f"{path}.{key}", field)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_texts(item, f"{path}[{number}]", field)
    elif isinstance(value, str):
        if "\0" in value:
            raise RowFault(f"field {path!r} holds a NUL character", field)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowFault(
                f"field {path!r} holds half of a surrogate pair (\\ud800-\\udfff)",
                field,
            ) from None
