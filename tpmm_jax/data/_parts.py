"""A row's prompt, chosen and rejected, brought to one format or taken apart."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tpmm_jax.data._split import split_messages, split_text
from tpmm_jax.data._strict_object import json_type
from tpmm_jax.data._transcripts import ASSISTANT, is_transcript, split_transcripts
from tpmm_jax.data.messages import (
    Conversation,
    Written,
    as_messages,
    continues,
    order_fault,
)

_NO_MORE = "is itself the beginning of the other one"


@dataclass(frozen=True)
class PreferencePair:
    """One pair; the completions are both texts or both conversations.

    A conversational prompt ends with a user message and each completion begins and
    ends with an assistant message. A given prompt that ends with an assistant message
    is the beginning of that message: the completions go on with it. An implicit prompt
    that does is answered by the user, where that is where the completions part.

    Attributes:
      implicit: the prompt was the common beginning of chosen and rejected.
      separator: what stands behind a text prompt where no chat template does.
      margin: by how much chosen leads rejected, if the row says so; below 0 where it
        contradicts the label.
      ended: False: both completions were cut, so that no end is put behind them.
    """

    prompt: Written
    chosen: Written
    rejected: Written
    origin: str
    implicit: bool = False
    separator: str = ""
    margin: float | None = None
    ended: bool = True


class PairFault(Exception):
    """What is wrong with a row, (column, text) each; is noted as its defects.

    Without arguments: what the file is refused for is noted already.
    """


def split_implicit(pair: PreferencePair, names: dict[str, str]) -> PreferencePair:
    chosen, rejected = pair.chosen, pair.rejected
    none = f"{names['chosen']} and {names['rejected']} share no"
    advice = f"add a {names['prompt']} field"
    if isinstance(chosen, str) and isinstance(rejected, str):
        transcript = split_transcripts(chosen, rejected)
        prompt, chosen, rejected = transcript or split_text(chosen, rejected)
        if transcript and not prompt:
            text = f"the transcripts share no beginning up to {ASSISTANT!r}"
            raise PairFault((names["chosen"], text))
        if not prompt.strip():
            raise PairFault((names["prompt"], f"{none} beginning; {advice}"))
        if transcript:
            whole = not prompt.endswith(ASSISTANT)
            text = _NO_MORE if whole else "the last reply is empty"
            _refuse_empty(chosen, rejected, names, text)
        return replace(pair, prompt=prompt, chosen=chosen, rejected=rejected)
    parts = split_messages(as_messages(chosen, ""), as_messages(rejected, ""))
    if not parts[0]:
        raise PairFault((names["prompt"], f"{none} first messages; {advice}"))
    # The conversation that ends there has no message of its own to learn from.
    _refuse_empty(*parts[1:], names, _NO_MORE)
    return _checked(parts, pair.origin, names, implicit=True)


def share_nothing(pair: PreferencePair) -> bool:
    """Whether chosen and rejected are texts that begin differently."""
    one, other = pair.chosen, pair.rejected
    if not isinstance(one, str) or not isinstance(other, str):
        return False
    return not (is_transcript(one) or split_text(one, other)[0].strip())


def _refuse_empty(
    chosen: Written, rejected: Written, names: dict[str, str], text: str
) -> None:
    sides = ((names["chosen"], chosen), (names["rejected"], rejected))
    empty = [
        (name, f"field {name!r}: {text}")
        for name, side in sides
        if not (side.strip() if isinstance(side, str) else side)
    ]
    if empty:
        raise PairFault(*empty)


def join_explicit(
    pair: PreferencePair, names: dict[str, str]
) -> tuple[PreferencePair, str]:
    """Bring an explicit prompt and its completions to one format."""
    if isinstance(pair.prompt, str) and isinstance(pair.chosen, str):
        return pair, ""
    prompt = as_messages(pair.prompt, "user")
    chosen = as_messages(pair.chosen, "assistant")
    rejected = as_messages(pair.rejected, "assistant")
    # A system message that stands in the completions alone joins the prompt.
    system = chosen[:1] if chosen[0].role == "system" != prompt[0].role else ()
    full = (*system, *prompt)
    size = len(full)
    if chosen[:size] == full == rejected[:size]:
        parts = full, chosen[size:], rejected[size:]
        _refuse_empty(*parts[1:], names, "holds the prompt but no answer")
        return _checked(parts, pair.origin, names), "prompt_repeated"
    return _checked((prompt, chosen, rejected), pair.origin, names), ""


def _checked(
    parts: tuple[Conversation, Conversation, Conversation],
    origin: str,
    names: dict[str, str],
    *,
    implicit: bool = False,
) -> PreferencePair:
    """The pair of (prompt, chosen, rejected), unless their roles are out of order."""
    prompt, chosen, rejected = parts
    goes_on = not implicit and continues(prompt, chosen) and continues(prompt, rejected)
    answered = goes_on or (implicit and prompt[-1].role == "assistant")
    last = "assistant" if answered else "user"
    if fault := order_fault(prompt, last=last):
        # The messages of an implicit prompt stand in both; the first is named.
        name = names["chosen" if implicit else "prompt"]
        raise PairFault((name, f"field {name!r}: {fault}"))
    asked = prompt[:-1] if goes_on else prompt
    faults = [
        (names[part], f"field {names[part]!r} after the prompt: {fault}")
        for part, side in (("chosen", chosen), ("rejected", rejected))
        if (fault := order_fault((*asked, *side), last="assistant"))
    ]
    if faults:
        raise PairFault(*faults)
    return PreferencePair(prompt, chosen, rejected, origin, implicit)


def read_instruction(data: Mapping[str, Any], faults: list[tuple[str, str]]) -> str:
    """The instruction and its input below it.

    Without a chat template a line break follows. One break, not two: before a word many
    tokenizers read two breaks differently than at the end of a text, so that no
    completion would join its prompt.
    """
    texts = []
    for name in ("instruction", "input"):
        value = data.get(name)
        if not isinstance(value, str) and not (name == "input" and value is None):
            text = f"field {name!r} is {json_type(value)}; wanted a text"
            faults.append((name, text))
        elif value and value.strip():
            texts.append(value)
        elif name == "instruction":
            faults.append((name, f"field {name!r} is empty"))
    return "\n\n".join(texts)
