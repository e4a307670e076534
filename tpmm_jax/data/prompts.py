"""Prompts to sample from: texts, conversations or token ids."""

import difflib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tpmm_jax.data.messages import (
    TEMPLATE_COLUMNS,
    Content,
    order_fault,
    parse_content,
    template_faults,
    unread_keys,
)
from tpmm_jax.data.problems import Problems
from tpmm_jax.data.sources import Row, read_rows

_log = logging.getLogger(__name__)
# Read in this order where a row lacks the field "prompt".
_OTHER_FIELDS = ("messages", "prompt_ids")


@dataclass(frozen=True)
class Prompt:
    """What a policy answers, and where it was read."""

    content: Content
    origin: str


class PromptSet(NamedTuple):
    """Prompts fit to sample from, and the number of rows they were read from."""

    prompts: list[Prompt]
    rows_read: int


def read_prompt_set(
    source: str, problems: Problems, *, field: str = "prompt", split: str = "train"
) -> PromptSet:
    """Read prompts, and note what is wrong.

    A row may hold a text, a message list or a list of token ids.

    Args:
      source: see ``sources.read_rows``.
      problems: where rows that are malformed or empty and mixed formats are noted; the
        caller settles them.
      field: the column; for "prompt", "messages" and "prompt_ids" serve as well.
      split: the split of a dataset.

    Returns:
      The prompts in order, duplicates kept (``duplicate_prompts`` counts them).
    """
    columns = (field, *_OTHER_FIELDS, *TEMPLATE_COLUMNS)
    rows = read_rows(source, split=split, columns=columns, problems=problems)
    found = [one for row in rows if (one := _parse(row, field, problems))]
    kinds = [(prompt.origin, describe_format(prompt.content)) for prompt in found]
    refuse_mixed(kinds, problems, field=field)
    bad = problems.origins()
    prompts = [prompt for prompt in found if prompt.origin not in bad]
    _warn_of_keys([row for row in rows if row.origin not in bad], field, source)
    return PromptSet(prompts, count_rows(rows, problems))


def _warn_of_keys(rows: Sequence[Row], field: str, source: str) -> None:
    values = (row.data[_column(row, field) or field] for row in rows)
    if found := [keys for value in values if (keys := unread_keys(value))]:
        _log.warning(
            "%s: prompts whose messages have more than role and content, which is left "
            "out: %d (%s)",
            source,
            len(found),
            ", ".join(sorted(set().union(*found))),
        )


def count_rows(rows: Sequence[Row], problems: Problems) -> int:
    """How many rows a source has, those that could not be parsed included."""
    lines = {
        d.origin for d in problems.found if d.origin.number is not None and not d.fatal
    }
    return len({row.origin for row in rows} | lines)


def duplicate_prompts(prompts: Iterable[Prompt]) -> int:
    """How many prompts repeat an earlier one."""
    counts = Counter(p.content for p in prompts)
    return counts.total() - len(counts)


def refuse_mixed(
    kinds: Sequence[tuple[str, Any]],
    problems: Problems,
    *,
    field: str | Callable[[Any, Any], str],
) -> None:
    """Note each (origin, format) that differs from most of the source's rows.

    Args:
      kinds: formats are compared with == and named with str().
      problems: where they are noted.
      field: the column that differs, or a function of (format, usual format).
    """
    tally = Counter(kind for _, kind in kinds)
    if len(tally) < 2:
        return
    usual, number = tally.most_common(1)[0]
    for origin, kind in kinds:
        if kind != usual:
            problems.add(
                origin,
                f"mixed formats: this row has {kind}, while {number} of {len(kinds)} "
                f"rows have {usual}; one file has one format",
                field=field if isinstance(field, str) else field(kind, usual),
            )


def missing_field(field: str, columns: Iterable[str]) -> str:
    """A message that lists the columns a row has and the nearest of them."""
    names = sorted(columns)
    near = difflib.get_close_matches(field, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"field {field!r} is missing (columns: {', '.join(names) or 'none'}){hint}"


def _column(row: Row, field: str) -> str | None:
    names = (field, *_OTHER_FIELDS) if field == "prompt" else (field,)
    return next((n for n in names if n in row.data), None)


def _parse(row: Row, field: str, problems: Problems) -> Prompt | None:
    name = _column(row, field)
    if name is None:
        text = missing_field(field, row.data)
        if {"chosen", "rejected"} <= row.data.keys():
            text += "; this looks like preference pairs, not prompts"
        problems.add(row.origin, text, field=field)
        return None
    content, faults = parse_prompt(row.data[name], name)
    for fault in faults:
        problems.add(row.origin, fault, field=name)
    if faults:
        return None
    if describe_format(content) == "messages":
        for column, fault in template_faults(row.data):
            problems.add(row.origin, fault, field=column)
    return Prompt(content, row.origin)


def describe_format(content: Content) -> str:
    """The format of a content in words."""
    if isinstance(content, str):
        return "text"
    return "token ids" if isinstance(content[0], int) else "messages"


def parse_prompt(value: Any, field: str) -> tuple[Content, list[str]]:
    """A prompt of any accepted form, and what is wrong with it."""
    if isinstance(value, list) and not value:
        return (), [f"field {field!r} is an empty list"]
    if isinstance(value, list) and all(type(item) is int for item in value):
        if min(value) < 0 or max(value) >= 2**31:
            return (), [f"field {field!r} holds a token id outside 0 to 2^31 - 1"]
        return tuple(value), []
    content, faults = parse_content(
        value, field, "a text, a message list or a list of token ids"
    )
    if not faults and isinstance(content, tuple):
        fault = order_fault(content, last="user")
        faults = [f"field {field!r}: {fault}"] if fault else []
    return content, faults
