"""What stands beside a row's prompt and answers, and what becomes of it.

A column that says something about the prompt is honoured or refused by name, never
dropped. Such a refusal concerns how a whole file is read: no row is at fault, and none
is dropped for it.
"""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tpmm_jax.data._earlier import HISTORY_COLUMN, SYSTEM_COLUMNS
from tpmm_jax.data._stored import find_stored, one_text
from tpmm_jax.data.messages import (
    TEMPLATE_COLUMNS,
    Content,
    as_messages,
    says_something,
    without_ids,
)
from tpmm_jax.data.problems import Place, Problems
from tpmm_jax.data.sources import Row

_LISTS = ("messages", "conversations")
# Questions, or what they are about: their text is looked for in the prompt.
_ASKED = (
    *("question", "instruction", "input", "query", *_LISTS),
    *("context", "contexts", "document", "documents", "passage", "passages"),
)
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
# Columns whose values are looked at beside those of a prompt and its answers.
SPEAKING = (
    *_ASKED,
    *_MEDIA,
    *TEMPLATE_COLUMNS,
    *SYSTEM_COLUMNS,
    HISTORY_COLUMN,
)
_IGNORE = "data.ignore_columns (--ignore-columns {column}) leaves it unread"
_STORED = (
    "holds a conversation as text (JSON, or a printed list), as CSV files and pandas "
    "leave it: data.parse_json=true (--parse-json) reads it, data.parse_json=false "
    "(--no-parse-json) takes the text as it is"
)

_EFFECT = (
    "{effect}, but it is given the messages alone; drop the column, write what it says "
    "into the model's chat_template.jinja, or " + _IGNORE
)
# When a refusal holds: always, or with, or without, a chat template.
When: TypeAlias = Literal["always", "chat", "plain"]
# Kind: when it holds, and what is said behind the column's name.
REFUSALS: dict[str, tuple[When, str]] = {
    "apart": (
        "always",
        "says something about the prompt that the prompt does not hold, and would be "
        'dropped; write it into the prompt, let data.fields={{"system": "{column}"}} '
        "(--fields system={column}) read it as the system message, or " + _IGNORE,
    ),
    "implicit": (
        "always",
        "is not in what chosen and rejected begin with, which would be the prompt; "
        'data.fields={{"prompt": "{column}"}} (--fields prompt={column}) reads it as '
        "the prompt, and data.implicit_prompt=true (--implicit-prompt) says that the "
        "common beginning is meant",
    ),
    "untold": (
        "chat",
        "begins as its other side does, and that would be the user's message; under a "
        "chat template name the column of the prompt (data.fields, --fields "
        "prompt=COLUMN), give messages, switch the template off, or say with "
        "data.implicit_prompt=true (--implicit-prompt) that it is meant",
    ),
    "media": ("always", "is nothing that a model here is given; " + _IGNORE),
    "written": ("always", _EFFECT),
    "template": ("chat", _EFFECT),
    "turns": (
        "plain",
        "becomes a message before the prompt, for which a chat template is needed; "
        "switch it on (data.chat=true, --chat), write the text into the prompt, or "
        + _IGNORE,
    ),
    "stored": ("always", _STORED),
}


@dataclass
class Beside:
    """Columns beside the prompts of one source, gathered over its rows.

    Attributes:
      ignored: columns of which nothing is refused.
      read: columns that a row was made of.
      spoke: columns of ``SPEAKING`` that said something in some row.
      refused: the places of the rows for each (kind of ``REFUSALS``, column).
    """

    ignored: Collection[str] = ()
    read: set[str] = field(default_factory=set)
    spoke: set[str] = field(default_factory=set)
    refused: dict[tuple[str, str], list[Place]] = field(default_factory=dict)

    def refuse(self, kind: str, column: str, origin: Place) -> None:
        """Note a row because of which the file is refused."""
        self.refused.setdefault((kind, column), []).append(origin)

    def look(
        self,
        row: Row,
        used: Collection[str],
        prompt: Content,
        answers: Sequence[Content] = (),
        *,
        implicit: bool = False,
        meant: bool = False,
    ) -> bool:
        """Note what a row says beside its prompt; returns whether it is refused.

        Args:
          used: the columns that the prompt and its answers were made of.
          prompt: with its system message and earlier turns; empty where chosen and
            rejected have no common beginning. Token ids are complete as they are.
          answers: the completions.
          implicit: the prompt is the common beginning of chosen and rejected.
          meant: and the user says so.
        """
        self.read.update(used)
        said = [
            c for c in SPEAKING if c not in used and says_something(row.data.get(c))
        ]
        self.spoke.update(said)
        if without_ids(prompt) is None:
            return False
        texts = _texts([prompt])
        whole = texts + _texts(answers)
        messages = any(isinstance(part, tuple) for part in (prompt, *answers) if part)
        kinds: dict[str, str] = {}
        for column in said:
            # Messages may hold the answer's turns as well.
            held = texts if implicit or column not in _LISTS else whole
            if column in self.ignored:
                continue
            if column in _MEDIA:
                kinds[column] = "media"
            elif column in TEMPLATE_COLUMNS:
                kinds[column] = "written" if messages else "template"
            elif not (implicit and meant) and not _holds(held, row.data[column]):
                kinds[column] = "implicit" if implicit else "apart"
        for column, kind in kinds.items():
            self.refuse(kind, column, row.origin)
        return bool(kinds)

    def settle(self, problems: Problems, when: When) -> bool:
        """Refuse the source for what was noted; returns whether there was any."""
        found = False
        for (kind, column), places in self.refused.items():
            holds, text = REFUSALS[kind]
            if holds != when:
                continue
            effect = TEMPLATE_COLUMNS.get(column, "")
            text = text.format(column=column, effect=effect)
            more = f" (and in {len(places) - 1:,} more rows)" if places[1:] else ""
            reason = f"field {column!r}{more}: {text}"
            problems.add(places[0], reason, field=column, fatal=True)
            found = True
        return found


def unpack(
    row: Row,
    asked: Collection[str],
    answers: Collection[str],
    parse_json: bool | None,
    beside: Beside,
) -> Row | None:
    """A row with its conversations that are stored as text read.

    Args:
      asked, answers: see ``find_stored``.
      parse_json: True reads them, False takes the texts as they are.

    Returns:
      None where the file is refused for this row.

    Raises:
      RowFault: a text looks like messages, but cannot be read back.
    """
    found = {} if parse_json is False else find_stored(row.data, asked, answers)
    if not found:
        return row
    if parse_json:
        read = {name: one_text(value, name) for name, value in found.items()}
        return Row(row.data | read, row.origin)
    for column in found:
        beside.refuse("stored", column, row.origin)
    return None


def refuse_missing(
    rows: Sequence[Row], names: Mapping[str, str], problems: Problems
) -> None:
    """Refuse a source that lacks a column that was named for what a row may lack."""
    for part in ("system", "history", "margin"):
        column = names.get(part)
        if column and rows and not any(column in row.data for row in rows):
            text = missing_field(column, rows[0].data)
            problems.add(problems.source, text, field=column, fatal=True)


def missing_field(field: str, columns: Iterable[str]) -> str:
    """A message that lists the columns a row has and the nearest of them."""
    names = sorted(columns)
    near = difflib.get_close_matches(field, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"field {field!r} is missing (columns: {', '.join(names) or 'none'}){hint}"


def unread_columns(
    rows: Iterable[Row], beside: Beside, looked_at: Collection[str]
) -> list[str]:
    """The columns that no row was made of, in order.

    Args:
      looked_at: columns that are read for another purpose, such as stated scores.
    """
    known = beside.read | set(looked_at)
    columns = dict.fromkeys(column for row in rows for column in row.data)
    return [
        column
        for column in columns
        if column not in known and (column not in SPEAKING or column in beside.spoke)
    ]


def _texts(contents: Iterable[Content]) -> str:
    """What is said in prompts and answers, without case and white space."""
    said = (without_ids(content) or "" for content in contents)
    return _folded("\n".join(m.content for one in said for m in as_messages(one, "")))


def _holds(texts: str, value: Any) -> bool:
    return all(_folded(text) in texts for text in _asked(value))


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _asked(value: Any) -> Iterator[str]:
    """The texts in a value, without those that an assistant says."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _asked(item)
    elif isinstance(value, Mapping):
        if value.get("role", value.get("from")) in ("assistant", "gpt"):
            return
        inner = [value[key] for key in ("content", "value") if key in value]
        for item in inner or value.values():
            yield from _asked(item)
