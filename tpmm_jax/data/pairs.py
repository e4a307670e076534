"""Preference pairs: a prompt, a chosen and a rejected completion."""

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tpmm_jax.data.messages import (
    Conversation,
    Message,
    Written,
    order_fault,
    parse_messages,
)
from tpmm_jax.data.problems import SHOWN, Problems
from tpmm_jax.data.prompts import missing_field, refuse_mixed
from tpmm_jax.data.sources import Row, read_rows
from tpmm_jax.data.split import (
    ASSISTANT,
    split_messages,
    split_text,
    split_transcript,
)
from tpmm_jax.data.strict_json import json_type
from tpmm_jax.errors import BadInput

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreferencePair:
    """One pair; the completions are both texts or both conversations.

    A conversational prompt ends with a user message, and each conversational
    completion begins and ends with an assistant message.
    """

    prompt: Written
    chosen: Written
    rejected: Written
    origin: str


@dataclass(frozen=True)
class PairSet:
    """Pairs fit for training, and what was counted on the way.

    Counts: rows_read; pairs; identical (dropped: chosen equals rejected); ends_early
    (one text completion is empty, as it is the beginning of the other);
    prompt_repeated (the completions held the prompt again, removed);
    duplicate_prompts; bad_rows_skipped.
    """

    pairs: list[PreferencePair]
    counts: dict[str, int]
    warnings: list[str] = field(default_factory=list)


class _Fault(Exception):
    """What is wrong with a row, one text each; becomes part of a BadInput."""


def load_pairs(source: str, *, split: str = "train", skip_bad_rows: int = 0) -> PairSet:
    """Read preference pairs.

    Rows hold chosen and rejected with a prompt (explicit), without one (implicit:
    their common beginning) or with an instruction and perhaps an input. Texts and
    message lists are accepted; a text prompt before conversational completions is
    one user message.

    Args:
      source: see ``sources.read_rows``.
      split: the split of a dataset.
      skip_bad_rows: up to so many malformed rows are left out with a warning.

    Returns:
      The pairs in order. Those whose sides are equal are dropped, counted and named
      in the warnings.

    Raises:
      BadInput: rows are malformed, one side is empty, or formats are mixed; all are
        listed. Or no pair is left.
    """
    problems = Problems(source, allowed_rows=skip_bad_rows)
    rows = read_rows(source, split=split, problems=problems)
    found: list[tuple[str, PreferencePair]] = []
    notes: Counter[str] = Counter()
    for row in rows:
        try:
            layout, pair, note = _parse(row)
        except _Fault as fault:
            for text in fault.args:
                problems.add(row.origin, text)
            continue
        found.append((layout, pair))
        notes[note] += bool(note)
    refuse_mixed([(pair.origin, layout) for layout, pair in found], problems)
    skipped = problems.settle()
    bad = problems.origins()
    parsed = [pair for _, pair in found if pair.origin not in bad]
    result = _drop_identical(parsed, notes)
    if not result.pairs:
        raise BadInput(f"{source}: no pair is left of {len(rows)} rows")
    result.counts.update(rows_read=len(rows), bad_rows_skipped=skipped)
    for warning in result.warnings:
        _log.warning("%s: %s", source, warning)
    return result


def _drop_identical(parsed: list[PreferencePair], notes: Counter[str]) -> PairSet:
    same = [p.origin for p in parsed if p.chosen == p.rejected]
    pairs = [p for p in parsed if p.chosen != p.rejected]
    warnings = []
    if same:
        more = f" and {len(same) - SHOWN} more" if len(same) > SHOWN else ""
        warnings.append(
            f"{len(same)} pairs dropped, as chosen equals rejected: "
            f"{', '.join(same[:SHOWN])}{more}"
        )
    early = sum(not (p.chosen and p.rejected) for p in pairs)
    counts = {
        "rows_read": 0,
        "pairs": len(pairs),
        "identical": len(same),
        "ends_early": early,
        "prompt_repeated": notes["prompt_repeated"],
        "duplicate_prompts": len(pairs) - len({p.prompt for p in pairs}),
        "bad_rows_skipped": 0,
    }
    return PairSet(pairs, counts, warnings)


def _parse(row: Row) -> tuple[str, PreferencePair, str]:
    """(layout, pair, note) of a row; raises _Fault with all that is wrong."""
    faults: list[str] = []
    chosen = _side(row.data, "chosen", faults)
    rejected = _side(row.data, "rejected", faults)
    name = next((n for n in ("prompt", "instruction") if n in row.data), None)
    prompt: Written | None = None
    if name == "instruction":
        prompt = _instruction(row.data, faults)
    elif name:
        prompt = _side(row.data, name, faults)
    if faults or chosen is None or rejected is None:
        raise _Fault(*faults)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise _Fault(
            f"mixed formats: chosen is {_format(chosen)}, rejected is "
            f"{_format(rejected)}; wanted the same for both"
        )
    layout = f"{name or 'an implicit prompt'} ({_format(prompt or chosen)})"
    layout = f"{layout} with {_format(chosen)} completions"
    # The equal ones are dropped by the caller; there is nothing in them to split.
    pair = PreferencePair(prompt or "", chosen, rejected, row.origin)
    if chosen == rejected:
        return layout, pair, ""
    if prompt is None:
        return layout, _implicit(pair), ""
    return layout, *_explicit(pair)


def _format(content: Written) -> str:
    return "text" if isinstance(content, str) else "message"


def _side(data: dict[str, Any], name: str, faults: list[str]) -> Written | None:
    if name not in data:
        faults.append(missing_field(name, data))
        return None
    value = data[name]
    if isinstance(value, str):
        if not value.strip():
            faults.append(f"field {name!r} is empty")
        return value
    if isinstance(value, list):
        messages, found = parse_messages(value, name)
        faults.extend(found)
        return messages
    faults.append(
        f"field {name!r} is {json_type(value)}; wanted a text or a message list"
    )
    return None


def _instruction(data: dict[str, Any], faults: list[str]) -> str:
    """The instruction, its input below it, and a line break before the answer.

    One break, not two: before a word many tokenizers read two breaks differently
    than at the end of a text, so that no completion would join its prompt.
    """
    texts = []
    for name in ("instruction", "input"):
        value = data.get(name)
        if not isinstance(value, str) and not (name == "input" and value is None):
            faults.append(f"field {name!r} is {json_type(value)}; wanted a text")
        elif value and value.strip():
            texts.append(value)
        elif name == "instruction":
            faults.append("field 'instruction' is empty")
    return "\n\n".join(texts) + "\n"


def _implicit(pair: PreferencePair) -> PreferencePair:
    chosen, rejected = pair.chosen, pair.rejected
    if isinstance(chosen, str) and isinstance(rejected, str):
        transcript = split_transcript(chosen, rejected)
        prompt, chosen, rejected = transcript or split_text(chosen, rejected)
        if transcript and not prompt:
            raise _Fault(f"the transcripts share no beginning up to {ASSISTANT!r}")
        if not prompt.strip():
            raise _Fault("chosen and rejected share no beginning; add a prompt field")
        if transcript:
            _refuse_empty(chosen, rejected)
        return PreferencePair(prompt, chosen, rejected, pair.origin)
    parts = split_messages(_turns(chosen, ""), _turns(rejected, ""))
    if not parts[0]:
        raise _Fault("chosen and rejected share no first messages; add a prompt field")
    return _checked(*parts, pair.origin)


def _turns(content: Written, role: str) -> Conversation:
    """A text as one message of that role; a conversation as it is."""
    return (Message(role, content),) if isinstance(content, str) else content


def _refuse_empty(chosen: str, rejected: str) -> None:
    sides = (("chosen", chosen), ("rejected", rejected))
    empty = [f"field {n!r}: the last reply is empty" for n, t in sides if not t.strip()]
    if empty:
        raise _Fault(*empty)


def _explicit(pair: PreferencePair) -> tuple[PreferencePair, str]:
    """Bring an explicit prompt and its completions to one format."""
    if isinstance(pair.prompt, str) and isinstance(pair.chosen, str):
        return pair, ""
    prompt = _turns(pair.prompt, "user")
    chosen = _turns(pair.chosen, "assistant")
    rejected = _turns(pair.rejected, "assistant")
    # A system message that stands in the completions alone joins the prompt.
    system = chosen[:1] if chosen[0].role == "system" != prompt[0].role else ()
    full = (*system, *prompt)
    size = len(full)
    if chosen[:size] == full == rejected[:size]:
        repeated = _checked(full, chosen[size:], rejected[size:], pair.origin)
        return repeated, "prompt_repeated"
    return _checked(prompt, chosen, rejected, pair.origin), ""


def _checked(
    prompt: Conversation, chosen: Conversation, rejected: Conversation, origin: str
) -> PreferencePair:
    if fault := order_fault(prompt, last="user"):
        raise _Fault(f"field 'prompt': {fault}")
    faults = [
        f"field {name!r} after the prompt: {fault}"
        for name, side in (("chosen", chosen), ("rejected", rejected))
        if (fault := order_fault((*prompt, *side), last="assistant"))
    ]
    if faults:
        raise _Fault(*faults)
    return PreferencePair(prompt, chosen, rejected, origin)
