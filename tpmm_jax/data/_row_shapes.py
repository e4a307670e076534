"""Where a row keeps its prompt, chosen and rejected, by the shapes that tools write.

The columns that a shape gives a meaning are named here and are read; those of another
shape stay unread, and whoever asks lists or refuses them.

  ShareGPT     conversations, or messages, beside chosen and rejected: the prompt, where
               the user speaks last and the two hold no prompt of their own
  OpenAI       input: {messages, tools}, preferred_output, non_preferred_output
  scored       several answers with their scores; see ``_scored``
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from tpmm_jax.data._message_shapes import plain_message
from tpmm_jax.data._scored import (
    SCORED_COLUMNS,
    ScoredPairs,
    find_answers,
)
from tpmm_jax.data._split import common_length
from tpmm_jax.data._stored import find_stored
from tpmm_jax.data.messages import says_something
from tpmm_jax.data.problems import RowFault
from tpmm_jax.data.sources import Row

LISTS = ("messages", "conversations")
# What the messages of an OpenAI row's ``input`` are called.
INPUT = "input.messages"
_OPENAI = {"chosen": "preferred_output", "rejected": "non_preferred_output"}
# Columns that prompts alone do not have.
ANSWER_COLUMNS = (*_OPENAI.values(), *SCORED_COLUMNS)
SHAPE_COLUMNS = (*LISTS, "input", *ANSWER_COLUMNS)


class Located(NamedTuple):
    """A row, and where its parts stand.

    Attributes:
      names: the column of each part, as of ``read_pair_set``.
      columns: {what a part is called: the column of the source that holds it}.
      scored: the columns of the answers and scores that the pair was made of.
      margin: the difference of the two scores; ranks have none.
    """

    row: Row
    names: dict[str, str]
    columns: dict[str, str]
    scored: Collection[str] = ()
    margin: float | None = None


def locate(
    row: Row,
    names: Mapping[str, str],
    scored_pairs: ScoredPairs,
    *,
    implicit_prompt: bool,
    ignored: Collection[str] = (),
) -> list[Located]:
    """The pairs of a row; none where its answers are scored alike.

    Args:
      names: the columns that were asked for; what has a name of its own is not looked
        for elsewhere.
      implicit_prompt: the prompt is the common beginning of chosen and rejected.
      ignored: columns that are left unread.

    Raises:
      RowFault: several columns may be the prompt, or scores that cannot be read.
    """
    found = dict(names)
    if names["prompt"] == "prompt" and "prompt" not in row.data and not implicit_prompt:
        row = row if "input" in ignored else open_input(row)
        found["prompt"] = _find_conversation(row, names, ignored) or "prompt"
    columns = {INPUT: "input"} if found["prompt"] == INPUT else {}
    asked = all(names[part] == part and part not in row.data for part in _OPENAI)
    if not asked:
        return [Located(row, found, columns)]
    if any(name in row.data for name in _OPENAI.values()):
        if found["prompt"] == "prompt" and "prompt" not in row.data:
            found["prompt"] = "input"
        return [Located(row, found | _OPENAI, columns)]
    answers = find_answers(row.data)
    if answers is None:
        return [Located(row, found, columns)]
    pairs = []
    for pair in answers.choose(scored_pairs):
        keys = {f"{answers.columns[0]}[{n}]": answers.answers[n] for n in pair}
        parts = dict(zip(("chosen", "rejected"), keys))
        held = columns | dict.fromkeys(keys, answers.columns[0])
        one = Row(row.data | keys, row.origin)
        margin = answers.margin(*pair)
        pairs.append(Located(one, found | parts, held, answers.columns, margin))
    return pairs


def open_input(row: Row) -> Row:
    """A row whose ``input`` holds messages, as one that has them in a column.

    Raises:
      RowFault: something beside them that cannot be honoured.
    """
    given = row.data.get("input")
    if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
        return row
    # Whether tools may be called at once says nothing without tools.
    known = {"messages", "tools", "parallel_tool_calls"}
    more = sorted(k for k in given.keys() - known if given[k] is not None)
    if more:
        raise RowFault(
            f"field 'input' holds {', '.join(more)} beside messages, which is not "
            "read; remove it",
            "input",
        )
    data: dict[str, Any] = {k: v for k, v in row.data.items() if k != "input"}
    if says_something(given.get("tools")):
        data["tools"] = given["tools"]
    return Row(data | {INPUT: given["messages"]}, row.origin)


def _find_conversation(
    row: Row, names: Mapping[str, str], ignored: Collection[str]
) -> str | None:
    """The column of messages that is the prompt; None if there is none.

    Raises:
      RowFault: there are several.
    """
    sides = [row.data.get(names[part]) for part in ("chosen", "rejected")]
    given = row.data | find_stored(row.data, LISTS)
    asked = {n: text for n in (INPUT, *LISTS) if (text := _last_question(given.get(n)))}
    found = [
        name
        for name, text in asked.items()
        if name not in ignored and not _hold_prompt(sides, text)
    ]
    if len(found) > 1:
        raise RowFault(
            f"fields {found[0]!r} and {found[1]!r} both may be the prompt; name one "
            f'with data.fields={{"prompt": "{found[0]}"}} (--fields '
            f"prompt={found[0]})",
            found[0],
        )
    return found[0] if found else None


def _last_question(value: Any) -> str:
    """What the user says last in a conversation that ends there; else ""."""
    last = plain_message(value[-1]) if isinstance(value, list) and value else None
    if not isinstance(last, dict) or last.get("role") != "user":
        return ""
    return str(last.get("content") or "")


def _hold_prompt(sides: list[Any], question: str) -> bool:
    """Whether chosen and rejected are conversations, or begin with the question."""
    one, other = sides
    if isinstance(one, str) and isinstance(other, str):
        begin = one[: common_length(one, other)].casefold()
        return question.strip().casefold() in begin
    firsts = [
        plain_message(side[0]) for side in sides if isinstance(side, list) and side
    ]
    return any(isinstance(m, dict) and m.get("role") != "assistant" for m in firsts)
