"""Prompts to sample from: texts, conversations or token ids."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tpmm_jax.data._beside import (
    SPEAKING,
    Beside,
    missing_field,
    unpack,
    unread_columns,
)
from tpmm_jax.data._earlier import history_column, put_before, read_earlier
from tpmm_jax.data._row_shapes import INPUT, LISTS, open_input
from tpmm_jax.data._transcripts import is_transcript, prompt_messages
from tpmm_jax.data.messages import (
    Content,
    as_messages,
    continues,
    order_fault,
    parse_content,
    unread_keys,
    without_ids,
)
from tpmm_jax.data.problems import Problems, RowFault
from tpmm_jax.data.sources import Row, read_rows
from tpmm_jax.errors import BadInput

_log = logging.getLogger(__name__)
# Read in this order where a row lacks the field "prompt".
_CONVERSATIONS = (*LISTS, INPUT)
_OTHER_FIELDS = (*_CONVERSATIONS, "prompt_ids")


@dataclass(frozen=True)
class Prompt:
    """What a policy answers, and where it was read.

    Attributes:
      columns: values that stand beside it, of columns that were asked for.
    """

    content: Content
    origin: str
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)


class PromptSet(NamedTuple):
    """Prompts fit to sample from, and what was read beside them.

    Attributes:
      rows_read: the number of rows, bad ones too.
      beside, unread: see ``pairs.PairSet``.
    """

    prompts: list[Prompt]
    rows_read: int
    beside: Beside
    unread: list[str]


def read_prompt_set(
    source: str,
    problems: Problems,
    *,
    field: str = "prompt",
    split: str = "train",
    fields: Mapping[str, str] | None = None,
    parse_json: bool | None = None,
    ignore_columns: Collection[str] = (),
    keep: Mapping[str, str] | None = None,
) -> PromptSet:
    """Read prompts, and note what is wrong.

    A row may hold a text, a message list or a list of token ids.

    Args:
      source: see ``sources.read_rows``.
      problems: where rows that are malformed or empty and mixed formats are noted; the
        caller settles them.
      field: the column; for "prompt", "messages", "conversations", the messages of
        "input" and "prompt_ids" serve as well.
      split: the split of a dataset.
      fields: the columns of "system" and "history" where they have other names.
      parse_json, ignore_columns: see ``DataConfig``.
      keep: columns whose values every prompt keeps, and the scorers that ask for them.

    Returns:
      The prompts in order, duplicates kept (``duplicate_prompts`` counts them).
    """
    keep, parts = keep or {}, ("system", "history")
    names = {part: name for part, name in (fields or {}).items() if part in parts}
    columns = (field, *_OTHER_FIELDS, *names.values(), *SPEAKING, *keep)
    rows = read_rows(source, split=split, columns=columns, problems=problems)
    how = PromptReading(field, names, parse_json, Beside({*ignore_columns, *keep}))
    _refuse_lacking(rows, keep, problems)
    found = [one for row in rows if (one := read_prompt_row(row, how, problems))]
    kinds = [(prompt.origin, kind) for prompt, kind, _ in found]
    refuse_mixed(kinds, problems, field=field)
    bad = problems.origins()
    good = [one for one in found if one[0].origin not in bad]
    beside: dict[Any, Mapping[str, Any]] = {
        row.origin: {c: row.data.get(c) for c in keep} for row in rows if keep
    }
    prompts = [replace(p, columns=beside.get(p.origin, {})) for p, _, _ in good]
    _warn_of_keys([keys for _, _, keys in good if keys], source)
    how.beside.settle(problems, "always")
    unread = unread_columns(rows, how.beside, {field, *keep})
    return PromptSet(prompts, count_rows(rows, problems), how.beside, unread)


def _refuse_lacking(
    rows: Sequence[Row], keep: Mapping[str, str], problems: Problems
) -> None:
    """Notes columns that a scorer asks for and the source, or a row, lacks."""
    for column, scorer in keep.items():
        lacking = [row for row in rows if column not in row.data]
        for row in lacking[:1] if len(lacking) == len(rows) else lacking:
            text = missing_field(column, row.data)
            problems.add(
                problems.source if len(lacking) == len(rows) else row.origin,
                f"{text}; scorer {scorer} asks for it by the name of a parameter",
                field=column,
                fatal=len(lacking) == len(rows),
            )


def _warn_of_keys(found: Sequence[set[str]], source: str) -> None:
    if found:
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


class PromptReading(NamedTuple):
    """How the rows of a source are read; see ``read_prompt_set``."""

    field: str
    names: dict[str, str]
    parse_json: bool | None
    beside: Beside


def _column(row: Row, field: str) -> str | None:
    names = (field, *_OTHER_FIELDS) if field == "prompt" else (field,)
    there = [name for name in names if name in row.data]
    # A table gives every row the columns of all rows.
    return next((n for n in there if row.data[n] is not None), (*there, None)[0])


def read_prompt_row(
    given: Row, how: PromptReading, problems: Problems
) -> tuple[Prompt, str, set[str]] | None:
    """(prompt, its format as given, keys left out); None where problems were noted."""
    if how.field == "prompt" and "prompt" not in given.data:
        try:
            given = open_input(given)
        except RowFault as fault:
            problems.add(given.origin, str(fault), field=fault.field)
            return None
    name = _column(given, how.field)
    if name is None:
        text = missing_field(how.field, given.data)
        if {"chosen", "rejected"} <= given.data.keys():
            text += "; this looks like preference pairs, not prompts"
        problems.add(given.origin, text, field=how.field)
        return None
    try:
        asked = (name, history_column(how.names))
        row = unpack(given, asked, (), how.parse_json, how.beside)
        if row is None:
            return None
        content, faults = parse_prompt(row.data[name], name)
        if not faults and name in _CONVERSATIONS and name != how.field:
            faults = _answered(content, name)
        for fault in faults:
            problems.add(row.origin, fault, field=_source_column(name))
        if faults:
            return None
        whole, columns = _with_earlier(content, name, row, how)
    except RowFault as fault:
        problems.add(given.origin, str(fault), field=fault.field)
        return None
    how.beside.look(row, {name, _source_column(name), *columns}, whole)
    keys = unread_keys(row.data[name], row.data.get(history_column(how.names)))
    return Prompt(whole, row.origin), describe_format(content), keys


def _source_column(name: str) -> str:
    return "input" if name == INPUT else name


def _answered(content: Content, name: str) -> list[str]:
    """What is wrong with a conversation that ends with its answer."""
    if not continues(content):
        return []
    return [
        f"field {name!r}: the last role is 'assistant'; wanted 'user', as an answered "
        "conversation is no prompt: drop the answer, or, where answers are to go on "
        f"with that message, name the column (data.prompt_field={name}, "
        f"--prompt-field {name})"
    ]


def _with_earlier(
    content: Content, name: str, row: Row, how: PromptReading
) -> tuple[Content, list[str]]:
    """A prompt behind its system message and earlier turns, and their columns."""
    text = without_ids(content)
    earlier = read_earlier(row.data, how.names | {"prompt": name}, how.beside.ignored)
    # Token ids are complete as they are.
    if text is None or not earlier.messages:
        return content, []
    columns = list(earlier.columns.values())
    for column in columns:
        how.beside.refuse("turns", column, row.origin)
    try:
        if isinstance(text, str) and is_transcript(text):
            text = prompt_messages(text)
    except BadInput as error:
        raise RowFault(str(error), name) from None
    return put_before(earlier, as_messages(text, "user")), columns


def describe_format(content: Content) -> str:
    """The format of a content in words."""
    if isinstance(content, str):
        return "text"
    return "token ids" if isinstance(content[0], int) else "messages"


def parse_prompt(value: Any, field: str) -> tuple[Content, list[str]]:
    """A prompt of any accepted form, and what is wrong with it.

    Messages end with the user's, or with one of the assistant that answers continue.
    """
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
        # A last message of the assistant is begun; the answer goes on with it.
        last = "assistant" if continues(content) else "user"
        fault = order_fault(content, last=last)
        faults = [f"field {field!r}: {fault}"] if fault else []
    return content, faults
