"""One JSON object, parsed without what JSON readers disagree about."""

import json
import math
import re
from collections.abc import Callable
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
    try:
        value = json.loads(text, **_CHECKS)
    except RowFault as fault:
        raise _with_column(text, fault) from None
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


def _with_column(text: str, fault: RowFault) -> RowFault:
    """The fault with the column that holds it; json's hooks do not know where they are.

    So the row is parsed again, each faulty value standing for itself.
    """
    keeping: dict[str, Any] = {name: _keeping(check) for name, check in _CHECKS.items()}
    row = json.loads(text, **keeping)
    if isinstance(row, RowFault):
        return row
    for column, value in row.items() if isinstance(row, dict) else ():
        if found := _first_fault(value):
            return RowFault(f"field {column!r}: {found}", column)
    return RowFault(str(fault))


def _keeping(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The check, which returns the fault that it would raise."""

    def kept(value: Any) -> Any:
        try:
            return check(value)
        except RowFault as fault:
            return fault

    return kept


def _first_fault(value: Any) -> RowFault | None:
    if isinstance(value, RowFault):
        return value
    inner = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return None
    return next((found for item in inner if (found := _first_fault(item))), None)


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(items)
    if len(result) != len(items):
        keys = [key for key, _ in items]
        twice = min(key for key in keys if keys.count(key) > 1)
        raise RowFault(appears_twice(twice), twice)
    return result


def appears_twice(key: str) -> str:
    """What is said of a key that an object holds twice."""
    return f"field {key!r} appears twice in one object"


def _refuse_constant(text: str) -> float:
    raise RowFault(f"{text} is not JSON; write null or leave the field out")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RowFault(f"the number {text[:24]} does not fit a float")
    return value


def _small_int(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise RowFault(f"the integer {text[:24]}... does not fit 64 bits")
    return int(text)


# What json.loads calls on each object and number.
_CHECKS: dict[str, Any] = {
    "object_pairs_hook": _unique_keys,
    "parse_constant": _refuse_constant,
    "parse_float": _finite_float,
    "parse_int": _small_int,
}


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
