"""Preference pairs: a prompt, a chosen and a rejected completion."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tpmm_jax.data._split import split_messages, split_text
from tpmm_jax.data._strict_object import json_type
from tpmm_jax.data._transcripts import (
    ASSISTANT,
    asks,
    is_transcript,
    split_transcripts,
)
from tpmm_jax.data.config import PARTS
from tpmm_jax.data.messages import (
    TEMPLATE_COLUMNS,
    Conversation,
    Written,
    as_messages,
    order_fault,
    parse_content,
    template_faults,
    unread_keys,
)
from tpmm_jax.data.problems import Problems
from tpmm_jax.data.prompts import count_rows, missing_field, refuse_mixed
from tpmm_jax.data.sources import Row, read_rows

_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
_NO_MORE = "is itself the beginning of the other one"
# Read beside those of PARTS.
_COLUMNS = ("instruction", "input", *TEMPLATE_COLUMNS, *_SCORES[0], *_SCORES[1])


@dataclass(frozen=True)
class PreferencePair:
    """One pair; the completions are both texts or both conversations.

    A conversational prompt ends with a user message and each completion begins and
    ends with an assistant message; but an implicit prompt may end with the assistant,
    and the completions begin with the user, where that is where they part.

    Attributes:
      implicit: the prompt was the common beginning of chosen and rejected.
      separator: what stands behind a text prompt where no chat template does.
    """

    prompt: Written
    chosen: Written
    rejected: Written
    origin: str
    implicit: bool = False
    separator: str = ""


@dataclass(frozen=True)
class PairSet:
    """Pairs fit for training, and what was counted on the way.

    Counts: rows_read (bad ones too); blank_lines (passed over); malformed; identical
    (chosen equals rejected); pairs (neither of these); ends_early (one text completion
    is empty, as it is the beginning of the other); prompt_repeated (the completions
    held the prompt again, removed); begins_with_prompt (text completions that both
    begin with the prompt, kept); several_turns (completions with user messages in
    them); duplicate_prompts;
    duplicate_pairs; keys_left_out (messages have keys beside role and content, which no
    template is given); tied and scored_otherwise (the row states scores, which are
    equal, or higher for rejected).
    """

    pairs: list[PreferencePair]
    counts: dict[str, int]


class _Layout(NamedTuple):
    """The format of a row, which all rows of a source share."""

    prompt: str
    completions: str

    def __str__(self) -> str:
        return f"{self.prompt} with {self.completions} completions"


class _Fault(Exception):
    """What is wrong with a row, (column, text) each; is noted as its defects."""


def read_pair_set(
    source: str,
    problems: Problems,
    *,
    split: str = "train",
    fields: Mapping[str, str] | None = None,
) -> PairSet:
    """Read preference pairs, and note what is wrong.

    Rows hold chosen and rejected with a prompt (explicit), without one (implicit:
    their common beginning) or with an instruction and perhaps an input. Texts and
    message lists are accepted; a text prompt before conversational completions is
    one user message.

    Args:
      source: see ``sources.read_rows``.
      problems: where malformed rows, empty or equal sides and mixed formats are noted;
        the caller settles them.
      split: the split of a dataset.
      fields: the column of "prompt", "chosen" or "rejected" where it has another name.

    Returns:
      The pairs in order, without those of which something is noted.
    """
    names = {part: part for part in PARTS} | dict(fields or {})
    columns = (*names.values(), *_COLUMNS)
    rows = read_rows(source, split=split, columns=columns, problems=problems)
    found = [one for row in rows if (one := _read_pair(row, names, problems))]
    refuse_mixed(
        [(pair.origin, layout) for layout, pair, _ in found],
        problems,
        field=lambda one, usual: names[
            "prompt" if one.prompt != usual.prompt else "chosen"
        ],
    )
    malformed, bad_rows = problems.origins(), len(problems.bad_rows())
    good = [(pair, notes) for _, pair, notes in found if pair.origin not in malformed]
    equal = [pair for pair, _ in good if pair.chosen == pair.rejected]
    for pair in equal:
        text = f"field {names['rejected']!r} equals {names['chosen']!r}"
        problems.add(pair.origin, text, field=names["rejected"])
    kept = [(pair, notes) for pair, notes in good if pair.chosen != pair.rejected]
    pairs = [pair for pair, _ in kept]
    counts = {
        "rows_read": count_rows(rows, problems),
        "blank_lines": problems.counts["blank_lines"],
        "malformed": bad_rows,
        "identical": len(equal),
        **_counts(pairs, Counter(note for _, notes in kept for note in notes)),
    }
    return PairSet(pairs, counts)


def _read_pair(
    row: Row, names: dict[str, str], problems: Problems
) -> tuple[_Layout, PreferencePair, list[str]] | None:
    """(layout, pair, what is counted of it); None where problems were noted."""
    try:
        layout, pair, note = _parse(row, names)
    except _Fault as fault:
        for field, text in fault.args:
            problems.add(row.origin, text, field=field)
        return None
    notes = [note, *_stated_scores(row)]
    if unread_keys(*(row.data.get(name) for name in names.values())):
        notes.append("keys_left_out")
    return layout, pair, notes


def _counts(pairs: list[PreferencePair], notes: Counter[str]) -> dict[str, int]:
    contents = {(p.prompt, p.chosen, p.rejected) for p in pairs}
    return {
        "pairs": len(pairs),
        "ends_early": sum(not (p.chosen and p.rejected) for p in pairs),
        "prompt_repeated": notes["prompt_repeated"],
        "begins_with_prompt": sum(_begin_with_prompt(p) for p in pairs),
        "several_turns": sum(map(_several_turns, pairs)),
        "duplicate_prompts": len(pairs) - len({p.prompt for p in pairs}),
        "duplicate_pairs": len(pairs) - len(contents),
        "keys_left_out": notes["keys_left_out"],
        "tied": notes["tied"],
        "scored_otherwise": notes["scored_otherwise"],
    }


def _several_turns(pair: PreferencePair) -> bool:
    sides = (pair.chosen, pair.rejected)
    if isinstance(pair.prompt, str):
        texts = [side for side in sides if isinstance(side, str)]
        return is_transcript(pair.prompt) and any(map(asks, texts))
    return max(map(len, sides)) > 1


def _stated_scores(row: Row) -> list[str]:
    """What the scores that some sets state say against the labels."""
    for names in _SCORES:
        chosen, rejected = (row.data.get(name) for name in names)
        if isinstance(chosen, int | float) and isinstance(rejected, int | float):
            if chosen == rejected:
                return ["tied"]
            return ["scored_otherwise"] if chosen < rejected else []
    return []


def _begin_with_prompt(pair: PreferencePair) -> bool:
    texts = (pair.chosen, pair.rejected)
    return isinstance(pair.prompt, str) and all(
        isinstance(text, str) and text.startswith(pair.prompt) for text in texts
    )


def _parse(row: Row, names: dict[str, str]) -> tuple[_Layout, PreferencePair, str]:
    """(layout, pair, note) of a row; raises _Fault with all that is wrong."""
    faults: list[tuple[str, str]] = []
    chosen = _side(row, names["chosen"], faults)
    rejected = _side(row, names["rejected"], faults)
    prompt: Written | None = None
    # A column that was named must be there; otherwise the prompt may be implicit.
    if names["prompt"] in row.data or names["prompt"] != "prompt":
        prompt = _side(row, names["prompt"], faults)
    elif "instruction" in row.data:
        names = {**names, "prompt": "instruction"}
        prompt = _instruction(row, faults)
    if faults:
        raise _Fault(*faults)
    if isinstance(chosen, str) != isinstance(rejected, str):
        text = (
            f"mixed formats: {names['chosen']} is {_format(chosen)}, "
            f"{names['rejected']} is {_format(rejected)}; wanted the same for both"
        )
        raise _Fault((names["rejected"], text))
    texts = isinstance(chosen, str) and isinstance(prompt, str | None)
    if not texts and (faults := template_faults(row.data)):
        raise _Fault(*faults)
    kind = "an implicit prompt" if prompt is None else names["prompt"]
    layout = _Layout(f"{kind} ({_format(prompt or chosen)})", _format(chosen))
    # The equal ones are left to the caller; there is nothing in them to split.
    separator = "\n" if names["prompt"] == "instruction" else ""
    pair = PreferencePair(
        prompt or "", chosen, rejected, row.origin, separator=separator
    )
    if chosen == rejected:
        return layout, pair, ""
    if prompt is None:
        return layout, _implicit(pair, names), ""
    return layout, *_explicit(pair, names)


def _format(content: Written) -> str:
    return "text" if isinstance(content, str) else "message"


def _side(row: Row, name: str, faults: list[tuple[str, str]]) -> Written:
    if name not in row.data:
        faults.append((name, missing_field(name, row.data)))
        return ""
    content, found = parse_content(row.data[name], name)
    faults.extend((name, text) for text in found)
    return content


def _instruction(row: Row, faults: list[tuple[str, str]]) -> str:
    """The instruction and its input below it.

    Without a chat template a line break follows. One break, not two: before a word many
    tokenizers read two breaks differently than at the end of a text, so that no
    completion would join its prompt.
    """
    texts = []
    for name in ("instruction", "input"):
        value = row.data.get(name)
        if not isinstance(value, str) and not (name == "input" and value is None):
            text = f"field {name!r} is {json_type(value)}; wanted a text"
            faults.append((name, text))
        elif value and value.strip():
            texts.append(value)
        elif name == "instruction":
            faults.append((name, f"field {name!r} is empty"))
    return "\n\n".join(texts)


def _implicit(pair: PreferencePair, names: dict[str, str]) -> PreferencePair:
    chosen, rejected = pair.chosen, pair.rejected
    none = f"{names['chosen']} and {names['rejected']} share no"
    advice = f"add a {names['prompt']} field"
    if isinstance(chosen, str) and isinstance(rejected, str):
        transcript = split_transcripts(chosen, rejected)
        prompt, chosen, rejected = transcript or split_text(chosen, rejected)
        if transcript and not prompt:
            text = f"the transcripts share no beginning up to {ASSISTANT!r}"
            raise _Fault((names["chosen"], text))
        if not prompt.strip():
            raise _Fault((names["prompt"], f"{none} beginning; {advice}"))
        if transcript:
            whole = not prompt.endswith(ASSISTANT)
            text = _NO_MORE if whole else "the last reply is empty"
            _refuse_empty(chosen, rejected, names, text)
        return PreferencePair(prompt, chosen, rejected, pair.origin, True)
    parts = split_messages(as_messages(chosen, ""), as_messages(rejected, ""))
    if not parts[0]:
        raise _Fault((names["prompt"], f"{none} first messages; {advice}"))
    # The conversation that ends there has no message of its own to learn from.
    _refuse_empty(*parts[1:], names, _NO_MORE)
    return _checked(parts, pair.origin, names, implicit=True)


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
        raise _Fault(*empty)


def _explicit(
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
    last = prompt[-1].role if implicit and prompt[-1].role == "assistant" else "user"
    if fault := order_fault(prompt, last=last):
        # The messages of an implicit prompt stand in both; the first is named.
        name = names["chosen" if implicit else "prompt"]
        raise _Fault((name, f"field {name!r}: {fault}"))
    faults = [
        (names[part], f"field {names[part]!r} after the prompt: {fault}")
        for part, side in (("chosen", chosen), ("rejected", rejected))
        if (fault := order_fault((*prompt, *side), last="assistant"))
    ]
    if faults:
        raise _Fault(*faults)
    return PreferencePair(prompt, chosen, rejected, origin, implicit)
