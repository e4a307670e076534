"""Conversations: parsing message lists and the order of their roles."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from tpmm_jax.data._message_shapes import part_fault, part_keys, plain_message
from tpmm_jax.data._strict_object import json_type

ROLES = ("system", "user", "assistant")
# Keys that change what a chat template writes; other extra keys are left out, counted.
_RENDERED_KEYS = frozenset(
    {"tool_calls", "tool_call_id", "function_call", "images"}
    | {"reasoning_content", "reasoning", "thinking"}
)
# Columns of a conversational row that other trainers hand to the chat template, and
# what it would do with them.
TEMPLATE_COLUMNS = {
    "tools": "the chat template would list these tools in the prompt",
    "functions": "the chat template would list these tools in the prompt",
    "chat_template_kwargs": "the chat template would write the messages as these say",
}


@dataclass(frozen=True)
class Message:
    """One turn: role is "system", "user" or "assistant"."""

    role: str
    content: str


Conversation: TypeAlias = tuple[Message, ...]
Written: TypeAlias = str | Conversation
# Token ids are taken as they are, special tokens included.
Content: TypeAlias = Written | tuple[int, ...]


def without_ids(content: Content) -> Written | None:
    """The content if it is a text or a conversation; None for token ids."""
    if isinstance(content, tuple) and content and isinstance(content[0], int):
        return None
    return cast(Written, content)


def as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The form that chat templates take."""
    return [{"role": m.role, "content": m.content} for m in messages]


def as_text(content: Written) -> str:
    """A text as it is; of a conversation one line per turn, "user: ..."."""
    if isinstance(content, str):
        return content
    return "\n".join(f"{m.role}: {m.content}" for m in content)


def as_messages(content: Written, role: str) -> Conversation:
    """A text as one message of that role; a conversation as it is."""
    return (Message(role, content),) if isinstance(content, str) else content


def parse_content(
    value: object, field: str, wanted: str = "a text or a message list"
) -> tuple[Written, list[str]]:
    """Check a text, or the shape of each message, not their order.

    One message may stand without a list; for the shapes of messages see
    ``_message_shapes``.

    Args:
      value: what a row holds.
      field: its name, for the messages.
      wanted: all that may stand there, for the messages.

    Returns:
      The text or conversation, and what is wrong with it (empty where nothing is).
    """
    if isinstance(value, str):
        return value, [] if value.strip() else [f"field {field!r} is empty"]
    if isinstance(value, dict) and not {"role", "from"}.isdisjoint(value):
        value = [value]
    if not isinstance(value, list):
        return "", [f"field {field!r} is {json_type(value)}; wanted {wanted}"]
    if not value:
        return (), [f"field {field!r} is an empty message list"]
    messages, faults = [], []
    for number, item in enumerate(map(plain_message, value)):
        fault = _message_fault(item)
        if fault:
            faults.append(f"field {field + f'[{number}]'!r}: {fault}")
        else:
            messages.append(Message(item["role"], item["content"]))
    return tuple(messages), faults


def _message_fault(item: object) -> str | None:
    if not isinstance(item, dict):
        return f"is {json_type(item)}; wanted an object with role and content"
    missing = [key for key in ("role", "content") if item.get(key) is None]
    if missing:
        return f"lacks {' and '.join(missing)}"
    role, content = item["role"], item["content"]
    if role not in ROLES:
        return f"unknown role {role!r}; wanted {', '.join(ROLES)}"
    if isinstance(content, list):
        return part_fault(content)
    if not isinstance(content, str):
        return f"content is {json_type(content)}; wanted a text"
    # An empty system message is how some data switch off a template's default one.
    if not content.strip() and role != "system":
        return f"the {role}'s content is empty"
    extra = sorted(k for k in _RENDERED_KEYS if item.get(k))
    if extra:
        return f"has {', '.join(extra)}, which is not supported"
    return None


def says_something(value: object) -> bool:
    """Whether a column says anything in a row."""
    if isinstance(value, str):
        return value.strip() not in ("", "null", "[]", "{}")
    if isinstance(value, dict):
        # A table gives every row the keys of all rows.
        return any(item is not None for item in value.values())
    if isinstance(value, list):
        return any(map(says_something, value))
    # A table writes NaN where a cell is empty.
    return value is not None and value == value


def unread_keys(*values: object) -> set[str]:
    """The keys of messages that no chat template is given.

    Args:
      values: what rows hold; anything but messages has none.
    """
    lists = [value if isinstance(value, list) else [value] for value in values]
    given = [item for items in lists for item in items if isinstance(item, dict)]
    return {
        key
        for message in map(plain_message, given)
        for key in message.keys() - {"role", "content"} - _RENDERED_KEYS
        if message[key] is not None
    }.union(*map(part_keys, given))


def continues(prompt: Content, completion: Content = "") -> bool:
    """Whether a completion goes on with the last message of its prompt."""
    asked, given = without_ids(prompt), without_ids(completion)
    if not isinstance(asked, tuple) or asked[-1].role != "assistant":
        return False
    return not isinstance(given, tuple) or given[0].role == "assistant"


def order_fault(messages: Sequence[Message], *, last: str) -> str | None:
    """What is wrong with the order of roles, or None.

    An optional system message comes first; then user and assistant take turns,
    beginning with the user and ending with ``last``.
    """
    roles = [m.role for m in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    wanted = [("user", "assistant")[i % 2] for i in range(len(turns))]
    if turns != wanted:
        at = next(i for i, (a, b) in enumerate(zip(turns, wanted)) if a != b)
        return (
            f"role {turns[at]!r}, where {wanted[at]!r} was expected (roles: "
            f"{', '.join(roles[:8])})"
        )
    if not turns or turns[-1] != last:
        return f"the last role is {roles[-1] if roles else None!r}; wanted {last!r}"
    return None
