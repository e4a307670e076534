"""Thoughts that a chat template's generation prompt opens (``<think>``).

An answer behind an open thought must close it; otherwise it is taught as a thought.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

# <think>, [THINK] and the like; a name that begins with "/" closes.
_TAG = re.compile(r"([<\[◁])([^\s/<>\[\]◁▷][^\s<>\[\]◁▷]*)([>\]▷])")
# <|START_THINKING|> and the like; <|im_start|> opens no thought.
_WORDS = (("START", "END"), ("start", "end"), ("BEGIN", "END"), ("begin", "end"))
_IS_THOUGHT = re.compile("think|thought|reason", re.IGNORECASE)


class Thought(NamedTuple):
    """A tag that is open at the end of a prompt, what closes it, what follows it."""

    opening: str
    closing: str
    behind: str


def open_thought(header: str, knows: Callable[[str], bool]) -> Thought | None:
    """The last tag of a header that is not closed in it.

    Args:
      header: what the template adds so that an answer follows.
      knows: whether the template or the vocabulary has a text. A tag counts only if
        its closing form is known: Gemma's <start_of_turn> has none.
    """
    for found in reversed(list(_TAG.finditer(header))):
        behind = header[found.end() :]
        closings = [c for c in _closings(*found.groups()) if knows(c)]
        if closings and not any(closing in behind for closing in closings):
            return Thought(found.group(), closings[0], behind)
    return None


def without_opening(thought: Thought, text: str) -> str:
    """An answer's text without an opening that the prompt ends with already."""
    begun = text.lstrip().removeprefix(thought.opening)
    if begun == text.lstrip():
        return text
    return begun.removeprefix(thought.behind)


def _closings(left: str, name: str, right: str) -> list[str]:
    """The texts that may close a tag."""
    names = [f"/{name}"]
    if name.startswith("|"):
        names.append(f"|/{name[1:]}")
    if _IS_THOUGHT.search(name):
        names += [name.replace(*words) for words in _WORDS if words[0] in name]
    return [f"{left}{other}{right}" for other in names]
