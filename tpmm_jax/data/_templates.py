"""Texts as a model reads them: plain, or written out by a chat template.

With ``chat`` a text prompt is one user message and a text completion one assistant
message. The template alone decides about BOS and headers. Without ``chat`` texts are
taken to the letter and conversations are refused.

A template that writes the day (``strftime_now``) is given the codec's, so that a run
that is continued later reads the same prompts.
"""

import functools
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from tpmm_jax.data._rendering import TemplateStopped, render
from tpmm_jax.data._split import common_length
from tpmm_jax.data._thoughts import Thought, open_thought, without_opening
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.messages import (
    Conversation,
    Message,
    Written,
    as_dicts,
    as_messages,
    continues,
)
from tpmm_jax.errors import BadInput

# A macro of this name hides the clock that transformers gives to templates; a function
# handed to apply_chat_template would reach the template as a placeholder. The line
# break at the end keeps the template's first line at the beginning of a line.
_CLOCK = "strftime_now"
_CALENDAR = (
    "{%- macro strftime_now(format) -%}{%- set day = namespace(text=format) -%}"
    "{%- for code, text in calendar -%}"
    "{%- set day.text = day.text | replace(code, text) -%}"
    "{%- endfor -%}{{- day.text -}}{%- endmacro %}\n"
)
_DATE_CODES = (
    *("%a", "%A", "%b", "%B", "%c", "%C", "%d", "%-d", "%D", "%e", "%F", "%g", "%G"),
    *("%h", "%H", "%-H", "%I", "%-I", "%j", "%-j", "%m", "%-m", "%M", "%-M", "%p"),
    *("%r", "%R", "%S", "%-S", "%f", "%T", "%u", "%U", "%V", "%w", "%W", "%x", "%X"),
    *("%y", "%Y", "%z", "%Z"),
)
_APPLY = PreTrainedTokenizerBase.apply_chat_template


def require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot write conversations."""
    found = getattr(tokenizer, "chat_template", None)
    if not isinstance(found, str | dict | None):
        raise BadInput(f"the tokenizer's chat_template is {found!r:.60}; wanted a text")
    if not found:
        raise BadInput(
            "chat is on, but the tokenizer has no chat template; use the tokenizer of "
            "an instruction-tuned model, put a chat_template.jinja beside it, or "
            "switch chat off"
        )


class OpenPrompt(NamedTuple):
    """A prompt's text, and the end of it that add_generation_prompt adds."""

    text: str
    header: str


class Writer:
    """Writes prompts and completions as the text that is tokenised."""

    def __init__(self, codec: TextCodec) -> None:
        self._tokenizer = codec.tokenizer
        self._chat = codec.chat
        # End markers are among them.
        self._added = tuple(codec.tokenizer.get_added_vocab())
        self._stray = self._usual = ""
        if codec.chat:
            require_template(codec.tokenizer)
            self._dated = _dated(codec)
            self._stray, self._usual = self._headers()

    @functools.cached_property
    def closing(self) -> str:
        """What a chat template writes behind an answer; "" without one."""
        if not self._chat:
            return ""
        asked = (Message("user", "question"),)
        text, _ = self.completion(asked, self.open_prompt(asked), "answer")
        return text.rpartition("answer")[2]

    def prompt(self, content: Written, *, next_role: str = "assistant") -> str:
        """The prompt's text; with ``chat`` it ends where the next role's text begins.

        That is behind a header; or within the last message, where that is the
        assistant's too.
        """
        if not self._chat:
            return _plain(content)
        messages = as_messages(content, "user")
        if messages[-1].role != "assistant":
            return self._render(messages, opens=True)
        asked, begun, turns = messages[:-1], messages[-1].content, messages[-1:]
        if next_role != "assistant":
            asked, begun, turns = messages, "", (Message(next_role, "x"),)
        text = self._render((*asked, *turns), opens=False)
        return self._front(asked, begun, turns, text)

    def open_prompt(
        self, content: Written, *, next_role: str = "assistant"
    ) -> OpenPrompt:
        """The prompt as ``prompt`` writes it, with what opens the assistant's turn."""
        text = self.prompt(content, next_role=next_role)
        asked = as_messages(content, "user")
        if not self._chat or asked[-1].role == "assistant":
            return OpenPrompt(text, "")
        if self._usual and text.endswith(self._usual):
            return OpenPrompt(text, self._usual)
        return OpenPrompt(text, _added(self._render(asked, opens=False), text))

    def completion(
        self, content: Written, opened: OpenPrompt, completion: Written
    ) -> tuple[str, bool]:
        """The text that follows the prompt's text, its end marker included.

        It is the written conversation minus the written prompt. Where the template
        writes an answered prompt differently from an open one (a reasoning header),
        the open prompt stays as it is and the text from the answer on follows it.

        Returns:
          The text, and whether the written prompt began the written conversation.

        Raises:
          BadInput: the template refuses the conversation; or its generation prompt
            opens a thought that this answer does not close.
        """
        if not self._chat:
            return _plain(completion), True
        asked = as_messages(content, "user")
        turns = as_messages(completion, "assistant")
        begun = ""
        if continues(content, completion):
            asked, begun = asked[:-1], asked[-1].content
            turns = (Message("assistant", begun + turns[0].content), *turns[1:])
        text = self._without_layout(self._render((*asked, *turns), opens=False))
        is_prefix = text.startswith(opened.text)
        start = len(opened.text)
        if not is_prefix:
            header = self._front(asked, begun, turns, text)
            start = len(header)
            if not text.startswith(header):
                raise BadInput(
                    "the chat template writes the prompt differently for different "
                    "answers; use a template that leaves messages unchanged"
                )
        if thought := open_thought(opened.header, self._knows):
            self._require_closed(thought, asked, turns, text, start)
            return without_opening(thought, text[start:]), is_prefix
        return text[start:], is_prefix

    def _require_closed(
        self,
        thought: Thought,
        asked: Conversation,
        turns: Conversation,
        text: str,
        start: int,
    ) -> None:
        """Refuse a completion, from ``start`` on, whose first turn is all thought."""
        end = len(text)
        if len(turns) > 1:
            mark = _mark(text)
            marked = (*asked, turns[0], Message(turns[1].role, mark), *turns[2:])
            end = self._render(marked, opens=False).find(mark)
        if thought.closing not in text[start:end]:
            raise BadInput(
                "the answer would be taught inside a thought: the chat template opens "
                f"{thought.opening} for it and writes it without {thought.closing}; "
                "put a chat_template.jinja into the model's directory whose generation "
                f"prompt closes {thought.opening}, or one that keeps {thought.closing} "
                "in answers, and write the thoughts into the answers"
            )

    def _front(
        self, asked: Conversation, begun: str, turns: Conversation, text: str
    ) -> str:
        """What is written before a text, as a mark in its place shows.

        Args:
          asked: the messages before the one that holds the text.
          begun: how that message begins, before the text.
          turns: that message, of which the role counts, and those behind it.
          text: all of these as they are written.
        """
        role = turns[0].role
        # What the template writes of its own (a default system message) counts too.
        mark = _mark(text)
        marked = (*asked, Message(role, begun + mark), *turns[1:])
        front, found, _ = self._render(marked, opens=False).partition(mark)
        if not found:
            raise BadInput(
                f"the chat template leaves out the {role}'s message; use one that "
                "writes it"
            )
        return front

    def _knows(self, text: str) -> bool:
        """Whether the template or the vocabulary has a text."""
        return text in _source(self._tokenizer) or text in self._added

    def _render(self, messages: Conversation, *, opens: bool) -> str:
        try:
            text = self._apply(as_dicts(messages), opens)
        except TemplateStopped:
            raise
        except Exception as error:
            roles = ", ".join(m.role for m in messages)
            raise BadInput(
                f"the chat template refuses the conversation ({roles}): {error}"
            ) from error
        return text if opens else text.removesuffix(self._stray)

    def _apply(self, messages: list[dict[str, str]], opens: bool) -> str:
        tokenizer = self._tokenizer
        if type(tokenizer).apply_chat_template is not _APPLY:
            # A tokenizer that writes in a way of its own, without a template.
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opens, **self._dated
            )
            return str(text)
        variables = {**tokenizer.special_tokens_map, **self._dated}
        template = variables.pop("chat_template", _source(tokenizer))
        return render(template, messages, opens=opens, variables=variables)

    def _headers(self) -> tuple[str, str]:
        """What a template writes unasked at the end, and what it adds if asked to.

        A template that always opens the assistant's turn (Llama 3's first one) ignores
        add_generation_prompt; a completion must not end with the header of a further
        answer. Opened or not, it writes one question as (line breaks left out)

            <|begin|><|start|>user<|end|>question<|eot|><|start|>assistant<|end|>

        The question's header, given the other role, and what follows the question both
        end with "|><|start|>assistant<|end|>". The stray header is that from its first
        whole marker on.
        """
        asked = (Message("user", "question"),)
        try:
            closed, opened = (self._render(asked, opens=o) for o in (False, True))
        except TemplateStopped:
            raise
        except BadInput:
            return "", ""
        if closed != opened:
            return "", _added(closed, opened)
        before, _, after = closed.rpartition("question")
        header = before.replace("user", "assistant")
        stray = after[len(after) - common_length(header[::-1], after[::-1]) :]
        starts = (i for i in range(len(stray)) if stray.startswith(self._added, i))
        stray = stray[next(starts, 0) :]
        return (stray, stray) if "assistant" in stray else ("", "")

    def _without_layout(self, text: str) -> str:
        """Without the line break that templates write after the end marker."""
        stripped = text.rstrip()
        return stripped if stripped.endswith(self._added) else text


def _dated(codec: TextCodec) -> dict[str, Any]:
    """What apply_chat_template takes so that the template sees the codec's day."""
    template = _source(codec.tokenizer)
    if _CLOCK not in template:
        return {}
    calendar = [(code, codec.date.strftime(code)) for code in _DATE_CODES]
    calendar = [("%%", "\0"), *calendar, ("\0", "%")]
    return {"chat_template": _CALENDAR + template, "calendar": calendar}


def _source(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template that writes messages; a tokenizer may have several."""
    template = tokenizer.chat_template
    if not isinstance(template, dict):
        return template
    if "default" not in template:
        raise BadInput(
            f"the tokenizer's chat templates are called {', '.join(template)}; wanted "
            "one called default: put a chat_template.jinja into the model's directory"
        )
    return template["default"]


def _added(closed: str, opened: str) -> str:
    """The end of an open prompt that is not in the closed one.

    The closed one may end with EOS, which begins as other tokens do ("<|").
    """
    start = common_length(closed, opened)
    while start and opened[start - 1] in "<|[":
        start -= 1
    return opened[start:]


def _mark(text: str) -> str:
    """A word that is not in the text."""
    mark = "answer"
    while mark in text:
        mark += "-x"
    return mark


def _plain(content: Written) -> str:
    if not isinstance(content, str):
        raise BadInput(
            "a conversation needs a chat template; switch chat on "
            "(data.chat=true, or --chat of a command), or give texts"
        )
    return content
