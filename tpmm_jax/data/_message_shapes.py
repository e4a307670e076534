"""Messages as other tools write them, brought to one form: role and content."""

from typing import Any

_ROLES = {"developer": "system", "model": "assistant"}
# What ShareGPT calls those who speak.
_SPEAKERS = {"human": "user", "gpt": "assistant", **_ROLES}
_TEXT_PARTS = ("text", "input_text", "output_text")


def plain_message(item: Any) -> Any:
    """A message with the roles and the text that a chat template takes.

    ShareGPT's from and value become role and content; developer is the system, model
    the assistant; text parts are joined as they follow each other. Anything else stays
    as it is, for a check to name.
    """
    if not isinstance(item, dict):
        return item
    names = _ROLES
    if item.get("role") is None and item.get("content") is None and "from" in item:
        rest = {k: v for k, v in item.items() if k not in ("from", "value")}
        item = rest | {"role": item["from"], "content": item.get("value")}
        names = _SPEAKERS
    role, content = item.get("role"), item.get("content")
    if isinstance(role, str):
        item = item | {"role": names.get(role, role)}
    if isinstance(content, list) and content and not part_fault(content):
        item = item | {"content": "".join(part["text"] for part in content)}
    return item


def part_fault(content: list[Any]) -> str:
    """What is wrong with a content that is a list of parts; "" if nothing."""
    for number, part in enumerate(content):
        if not isinstance(part, dict):
            return "content is a list; wanted a text or text parts"
        kind = part.get("type")
        if kind not in _TEXT_PARTS:
            return f"content[{number}] has the type {kind!r}; only text can be read"
        if not isinstance(part.get("text"), str):
            return f"content[{number}] has no text"
    return "" if content else "content is an empty list; wanted a text or text parts"


def part_keys(item: Any) -> set[str]:
    """The keys of a message's text parts that are left out."""
    content = item.get("content") if isinstance(item, dict) else None
    if not isinstance(content, list) or part_fault(content):
        return set()
    return {
        f"content.{key}"
        for part in content
        for key in part.keys() - {"type", "text"}
        if part[key] is not None
    }
