"""Conversations that a table holds as text, as CSV files and pandas leave them.

A text is taken for one only where its shape says so: messages with a role and a content
(or "from" and "value"); of prompts a list of texts too. Other JSON may be an answer.
"""

import ast
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from tpmm_jax.data._strict_object import parse_object
from tpmm_jax.data.problems import RowFault

# JSON, a printed Python list, a printed NumPy array.
_FRONT = re.compile(r"\s*(\[|\{|array\()")
_KEYS = (("role", "content"), ("from", "value"))


def find_stored(
    data: Mapping[str, Any], asked: Collection[str], answers: Collection[str] = ()
) -> dict[str, Any]:
    """The columns of a row whose text is a conversation, with what it says.

    Args:
      asked: columns of prompts and earlier turns.
      answers: columns of completions; a list of texts is one there only where the
        prompt is one too, as it may be what was asked for.

    Raises:
      RowFault: a text looks like messages, but cannot be read back.
    """
    found = {name: value for name in asked if (value := _stored(data, name))}
    for name, value in list(found.items()):
        kinds: dict[str, Any] = {"prompt_ids": int, "history": list}
        if not (_is_conversation(value) or _is_list(value, kinds.get(name, str))):
            del found[name]
    listed = any(_is_list(value, str) for value in found.values())
    for name in answers:
        value = _stored(data, name)
        if _is_conversation(value) or (listed and _is_list(value, str)):
            found[name] = value
    return found


def one_text(value: Any, column: str) -> Any:
    """A list of one text as that text; anything else as it is.

    Raises:
      RowFault: a list of several texts.
    """
    if not _is_list(value, str):
        return value
    if len(value) > 1:
        raise RowFault(
            f"field {column!r} holds a list of {len(value)} texts; wanted one text, or "
            "messages with role and content",
            column,
        )
    return value[0]


def _stored(data: Mapping[str, Any], column: str) -> Any:
    """The list or object that a text holds; None if it is an ordinary text."""
    text = data.get(column)
    if not isinstance(text, str) or not _FRONT.match(text):
        return None
    try:
        row = parse_object(f'{{"value": {text}}}')
        return row["value"] if len(row) == 1 else None
    except json.JSONDecodeError:
        pass
    except (ValueError, RecursionError):
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        pass
    if any(all(f"'{key}':" in text for key in keys) for keys in _KEYS):
        raise RowFault(
            f"field {column!r} looks like messages that were printed and cannot be "
            "read back; write them as JSON, or take the text as it is with "
            "data.parse_json=false (--no-parse-json)",
            column,
        )
    return None


def _is_list(value: Any, kind: type) -> bool:
    full = isinstance(value, list) and bool(value)
    return full and all(isinstance(item, kind) for item in value)


def _is_conversation(value: Any) -> bool:
    messages = value if isinstance(value, list) else [value]
    return bool(messages) and all(
        isinstance(item, dict) and any(all(k in item for k in keys) for keys in _KEYS)
        for item in messages
    )
