"""What a row says before its prompt: a system text, and turns that went before."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from tpmm_jax.data._strict_object import json_type
from tpmm_jax.data._transcripts import (
    completion_messages,
    is_transcript,
    prompt_messages,
)
from tpmm_jax.data.messages import (
    Conversation,
    Message,
    Written,
    as_messages,
    order_fault,
    parse_content,
    says_something,
)
from tpmm_jax.data.problems import RowFault

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
HISTORY_COLUMN = "history"


class Earlier(NamedTuple):
    """The messages before a prompt, and the columns of their parts."""

    messages: Conversation
    columns: dict[str, str]


def history_column(names: Mapping[str, str]) -> str:
    """The column that may hold earlier turns."""
    return names.get("history", HISTORY_COLUMN)


def read_earlier(
    data: Mapping[str, Any], names: Mapping[str, str], ignored: Collection[str] = ()
) -> Earlier:
    """The system message and the earlier turns that stand beside a prompt.

    Args:
      data: a row.
      names: the columns of the parts of a row; one that serves as another part is
        none of these.
      ignored: columns that are not read.

    Raises:
      RowFault: a column holds something else.
    """
    taken = {name for part, name in names.items() if part not in ("system", "history")}
    taken.update(ignored)
    messages: list[Message] = []
    columns: dict[str, str] = {}
    filled = (c for c in SYSTEM_COLUMNS if says_something(data.get(c)))
    usual = next((c for c in filled if c not in taken), "")
    system = names.get("system", usual)
    if system not in taken and says_something(data.get(system)):
        text = data[system]
        if not isinstance(text, str):
            raise RowFault(
                f"field {system!r} is {json_type(text)}; wanted a text", system
            )
        messages.append(Message("system", text))
        columns["system"] = system
    history = history_column(names)
    if history not in taken and says_something(data.get(history)):
        turns = _turns(data[history], history)
        if turns[0] in messages:
            turns = turns[1:]
        messages += turns
        columns["history"] = history
    return Earlier(tuple(messages), columns)


def _turns(value: Any, name: str) -> Conversation:
    """Earlier turns: messages, or (question, answer) pairs of texts."""
    if isinstance(value, list) and all(
        isinstance(item, list) and len(item) == 2 for item in value
    ):
        value = [
            {"role": role, "content": text}
            for item in value
            for role, text in zip(("user", "assistant"), item)
        ]
    wanted = "a message list or [question, answer] pairs"
    if isinstance(value, str):
        raise RowFault(f"field {name!r} is a text; wanted {wanted}", name)
    content, faults = parse_content(value, name, wanted)
    messages = as_messages(content, "")
    if not faults and (fault := order_fault(messages, last="assistant")):
        faults = [f"field {name!r}: {fault}"]
    if faults:
        raise RowFault("; ".join(faults), name)
    return messages


def put_before(earlier: Earlier, prompt: Conversation) -> Conversation:
    """A prompt with what goes before it, unless it holds that already.

    Raises:
      RowFault: two different system messages, or turns that do not follow each other.
    """
    messages = earlier.messages
    if not messages or prompt[: len(messages)] == messages:
        return prompt
    column = next(iter(earlier.columns.values()))
    if prompt[0].role == "system":
        if messages[0].role == "system" and messages[0] != prompt[0]:
            raise RowFault(
                f"field {column!r} and the prompt's messages have different system "
                "messages; leave one of them",
                column,
            )
        messages = (prompt[0], *(m for m in messages if m.role != "system"))
        prompt = prompt[1:]
    whole = (*messages, *prompt)
    if fault := order_fault(whole, last=whole[-1].role):
        raise RowFault(f"field {column!r} before the prompt: {fault}", column)
    return whole


def as_turns(
    prompt: Written, chosen: Written, rejected: Written, *, implicit: bool
) -> tuple[Written, Written, Written]:
    """A pair as turns: a transcript's, or one of the user and one that answers.

    Raises:
      BadInput: a transcript whose turns are out of order.
    """
    if not (
        isinstance(prompt, str)
        and isinstance(chosen, str)
        and isinstance(rejected, str)
    ):
        return prompt, chosen, rejected
    if is_transcript(prompt):
        return (
            prompt_messages(prompt, answered=True),
            completion_messages(prompt, chosen),
            completion_messages(prompt, rejected),
        )
    if not implicit:
        return prompt, chosen, rejected
    # The space at which an implicit prompt was cut opens no turn.
    return prompt, chosen.lstrip(" \t"), rejected.lstrip(" \t")
