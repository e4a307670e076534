"""Texts as a model reads them: plain, or written out by a chat template.

With ``chat`` a text prompt is one user message and a text completion one assistant
message. The template alone decides about BOS and headers. Without ``chat`` texts are
taken to the letter and conversations are refused.
"""

import jinja2
from transformers import PreTrainedTokenizerBase

from tpmm_jax.data.messages import (
    Conversation,
    Message,
    Written,
    as_dicts,
)
from tpmm_jax.errors import BadInput


def require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot write conversations."""
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput(
            "chat is on, but the tokenizer has no chat template; use the tokenizer of "
            "an instruction-tuned model or switch chat off"
        )


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, content: Written, *, chat: bool
) -> str:
    """The prompt's text; with ``chat`` it ends with the header of the assistant's turn.

    A conversation that ends with the assistant goes on with the user: no header.
    """
    if chat:
        messages = _messages(content, "user")
        opens = messages[-1].role != "assistant"
        return _render(tokenizer, messages, add_generation_prompt=opens)
    return _plain(content)


def completion_text(
    tokenizer: PreTrainedTokenizerBase,
    content: Written,
    written_prompt: str,
    completion: Written,
    *,
    chat: bool,
) -> tuple[str, bool]:
    """The text that follows the prompt's text, its end marker included.

    It is the written conversation less the written prompt. Where the template writes
    an answered prompt differently from an open one (a reasoning header), the open
    prompt stays as it is and the text from the answer on follows it.

    Returns:
      The text, and whether the written prompt began the written conversation.
    """
    if not chat:
        return _plain(completion), True
    turns = _messages(completion, "assistant")
    messages = (*_messages(content, "user"), *turns)
    text = _render(tokenizer, messages, add_generation_prompt=False)
    text = _without_layout(tokenizer, text)
    if text.startswith(written_prompt):
        return text[len(written_prompt) :], True
    # A mark in the answer's place shows where the template puts it.
    mark = "answer"
    while mark in text:
        mark += "-x"
    first = len(messages) - len(turns)
    marked = (*messages[:first], Message(turns[0].role, mark), *messages[first + 1 :])
    header, _, _ = _render(tokenizer, marked, add_generation_prompt=False).partition(
        mark
    )
    if not text.startswith(header):
        raise BadInput(
            "the chat template writes the prompt differently for different answers; "
            "use a template that leaves messages unchanged"
        )
    return text[len(header) :], False


def _messages(content: Written, role: str) -> Conversation:
    return (Message(role, content),) if isinstance(content, str) else content


def _plain(content: Written) -> str:
    if not isinstance(content, str):
        raise BadInput(
            "a conversation needs a chat template; switch chat on, or give texts"
        )
    return content


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Conversation,
    *,
    add_generation_prompt: bool,
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            as_dicts(messages),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(m.role for m in messages)
        raise BadInput(
            f"the chat template refuses the conversation ({roles}): {error}"
        ) from error
    return str(text)


def _without_layout(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Without the line break that templates write after the end marker."""
    stripped = text.rstrip()
    if stripped.endswith(tuple(tokenizer.get_added_vocab())):
        return stripped
    return text
