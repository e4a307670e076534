"""Transcripts: texts of the form "Human: ... Assistant: ...", and their turns."""

import re

from tpmm_jax.data._split import common_length
from tpmm_jax.data.messages import Conversation, Message, order_fault
from tpmm_jax.errors import BadInput

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_ROLES = {"Human": "user", "Assistant": "assistant"}
_MARKER = re.compile(r"\n\n(Human|Assistant):")


def is_transcript(text: str) -> bool:
    """Whether a text begins with the human's turn and comes to the assistant's."""
    return text.lstrip().startswith(HUMAN.strip()) and ASSISTANT in text


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """Split two transcripts into (prompt, chosen, rejected); None if one is not.

    The prompt ends with the last common "\\n\\nAssistant:", or with the reply that
    follows it where that is common too: as of conversations, nothing shared stands in
    both completions. It is empty where the transcripts share no such marker.
    """
    if not all(t.lstrip().startswith(HUMAN.strip()) for t in (chosen, rejected)):
        return None
    at = chosen.rfind(ASSISTANT, 0, common_length(chosen, rejected))
    cut = at + len(ASSISTANT) if at >= 0 else 0
    replies = {text[cut:].partition(HUMAN)[0] for text in (chosen, rejected)}
    if cut and len(replies) == 1:
        cut += len(replies.pop())
        # As of other texts, line breaks at the cut stay with the prompt.
        both_go_on = len(chosen) > cut and len(rejected) > cut
        cut += both_go_on * (len(HUMAN) - len(HUMAN.lstrip()))
    return chosen[:cut], chosen[cut:], rejected[cut:]


def asks(completion: str) -> bool:
    """Whether a completion of a transcript holds the human's words."""
    return HUMAN in "\n\n" + completion


def prompt_messages(text: str, *, answered: bool = False) -> Conversation:
    """The messages of a transcript that is to be continued.

    Args:
      answered: it may end with a reply, which the user is to answer.

    Raises:
      BadInput: the turns are out of order, one is empty, or none is to be answered.
    """
    turns = _opened(text)
    ends = answered and bool(turns) and turns[-1].role == "assistant"
    return _checked(turns, "assistant" if ends else "user")


def completion_messages(prompt: str, completion: str) -> Conversation:
    """The messages with which a completion continues a transcript.

    Raises:
      BadInput: as ``prompt_messages``, or the prompt ends inside a reply.
    """
    front, whole = _opened(prompt), _turns(prompt + completion)
    if whole[: len(front)] != front:
        raise BadInput(
            "with the chat template: the prompt, a transcript, ends inside a turn; let "
            f"it end with {ASSISTANT!r}"
        )
    return _checked(whole, "assistant")[len(front) :]


def _turns(text: str) -> Conversation:
    parts = _MARKER.split("\n\n" + text.lstrip())
    return tuple(
        Message(_ROLES[name], said.strip())
        for name, said in zip(parts[1::2], parts[2::2])
    )


def _opened(prompt: str) -> Conversation:
    """The turns of a prompt without the one that is to be written."""
    turns = _turns(prompt)
    is_open = turns[-1].role == "assistant" and not turns[-1].content
    return turns[:-1] if is_open else turns


def _checked(turns: Conversation, last: str) -> Conversation:
    fault = order_fault(turns, last=last)
    if fault is None and not all(turn.content for turn in turns):
        fault = "one of its turns is empty"
    if fault is not None:
        raise BadInput(
            f"with the chat template: the transcript cannot be read as messages: "
            f"{fault}; correct it, or give messages"
        )
    return turns
