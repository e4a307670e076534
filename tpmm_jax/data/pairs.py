"""Preference pairs: a prompt, a chosen and a rejected completion."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

from tpmm_jax.data._beside import (
    SPEAKING,
    Beside,
    missing_field,
    refuse_missing,
    unpack,
    unread_columns,
)
from tpmm_jax.data._earlier import (
    Earlier,
    as_turns,
    history_column,
    put_before,
    read_earlier,
)
from tpmm_jax.data._margins import Margin, find_margin, note_margins, scored_margin
from tpmm_jax.data._parts import (
    PairFault,
    PreferencePair,
    join_explicit,
    read_instruction,
    share_nothing,
    split_implicit,
)
from tpmm_jax.data._ratings import RATING_COLUMNS, compare_ratings
from tpmm_jax.data._row_shapes import ANSWER_COLUMNS, SHAPE_COLUMNS, locate
from tpmm_jax.data._scored import ScoredPairs
from tpmm_jax.data._transcripts import (
    asks,
    is_transcript,
)
from tpmm_jax.data.config import PARTS
from tpmm_jax.data.messages import (
    Written,
    as_messages,
    continues,
    parse_content,
    unread_keys,
)
from tpmm_jax.data.problems import Problems, RowFault
from tpmm_jax.data.prompts import count_rows, refuse_mixed
from tpmm_jax.data.sources import Row, read_rows
from tpmm_jax.errors import BadInput

__all__ = ["PairSet", "PreferencePair", "read_pair_set"]

_PASSED_OVER = ("blank_lines", "scored_rows", "no_preference")
# Read beside those of PARTS.
_COLUMNS = (*SPEAKING, *SHAPE_COLUMNS, *RATING_COLUMNS)


@dataclass(frozen=True)
class PairSet:
    """Pairs fit for training, and what was counted on the way.

    Counts: rows_read (bad ones too); blank_lines (passed over); scored_rows (of several
    scored answers); no_preference (those whose answers are scored alike); malformed;
    identical (chosen equals rejected); pairs (neither of these); ends_early (one text
    completion is empty, as it is the beginning of the other); prompt_repeated (the
    completions held the prompt again, removed); begins_with_prompt (completions that
    both begin with the text prompt, or with the message that they go on with, kept);
    continued (completions that go on with the prompt's last message);
    several_turns (completions with user messages in them);
    duplicate_prompts; duplicate_pairs; keys_left_out (messages have keys beside role
    and content, which no template is given); tied and scored_otherwise (the row states
    ratings, which are equal, or higher for rejected; the latter are remarks);
    with_system and with_history (messages before the prompt come from columns of their
    own); with_margin.

    Attributes:
      beside: what other columns say; some of it matters under a chat template alone.
      unread: the columns that no row was made of.
    """

    pairs: list[PreferencePair]
    counts: dict[str, int]
    beside: Beside = field(default_factory=Beside)
    unread: list[str] = field(default_factory=list)


class _Layout(NamedTuple):
    """The format of a row, which all rows of a source share."""

    prompt: str
    completions: str

    def __str__(self) -> str:
        return f"{self.prompt} with {self.completions} completions"


class _How(NamedTuple):
    """How the rows of a source are read; see ``read_pair_set``."""

    names: dict[str, str]
    implicit_prompt: bool
    parse_json: bool | None
    beside: Beside
    scored_pairs: ScoredPairs
    # Columns of the source, by what a shape calls their parts.
    columns: Mapping[str, str] = MappingProxyType({})
    # Of two scored answers.
    margin: Margin | None = None
    bare: bool = False


class _Read(NamedTuple):
    """A row's pair, its format, what is counted of it, and what it says of a margin."""

    layout: _Layout
    pair: PreferencePair
    notes: list[str]
    margin: Margin


def read_pair_set(
    source: str,
    problems: Problems,
    *,
    split: str = "train",
    fields: Mapping[str, str] | None = None,
    implicit_prompt: bool = False,
    parse_json: bool | None = None,
    ignore_columns: Collection[str] = (),
    scored_pairs: ScoredPairs = "best_worst",
    margins: bool = False,
    bare: bool = False,
) -> PairSet:
    """Read preference pairs, and note what is wrong.

    Rows hold chosen and rejected with a prompt (explicit), without one (implicit:
    their common beginning) or with an instruction; docs/data.md lists all shapes.

    Args:
      source: see ``sources.read_rows``.
      problems: where malformed rows, empty or equal sides and mixed formats are noted;
        the caller settles them.
      split: the split of a dataset.
      fields: the column of "prompt", "chosen" or "rejected" where it has another name,
        or of "system", "history" or "margin".
      implicit_prompt, parse_json, ignore_columns, scored_pairs: see ``DataConfig``.
      margins, bare: see ``prepare.prepare_pairs``.

    Returns:
      The pairs in order, without those of which something is noted.
    """
    names = {part: part for part in PARTS} | dict(fields or {})
    columns = (*names.values(), *_COLUMNS)
    rows = read_rows(source, split=split, columns=columns, problems=problems)
    beside = Beside(ignore_columns)
    how = _How(names, implicit_prompt, parse_json, beside, scored_pairs, bare=bare)
    found = [one for row in rows for one in _read_row(row, how, problems)]
    _refuse_mixed([(one.pair.origin, one.layout) for one in found], names, problems)
    note_margins([(o.pair.origin, o.margin) for o in found], problems, used=margins)
    malformed, bad_rows = problems.origins(), len(problems.bad_rows())
    good = [(o.pair, o.notes) for o in found if o.pair.origin not in malformed]
    equal = [pair for pair, _ in good if pair.chosen == pair.rejected]
    for pair in equal:
        text = f"field {names['rejected']!r} equals {names['chosen']!r}"
        problems.add(pair.origin, text, field=names["rejected"])
    kept = [(pair, notes) for pair, notes in good if pair.chosen != pair.rejected]
    pairs = [pair for pair, _ in kept]
    bad = problems.origins()
    problems.remarks = [one for one in problems.remarks if one.origin not in bad]
    counts = {
        "rows_read": count_rows(rows, problems),
        **{n: problems.counts[n] for n in _PASSED_OVER},
        "malformed": bad_rows,
        "identical": len(equal),
        **_counts(pairs, Counter(note for _, notes in kept for note in notes)),
    }
    beside.settle(problems, "always")
    refuse_missing(rows, names, problems)
    unread = unread_columns(rows, beside, {*names.values(), *RATING_COLUMNS})
    return PairSet(pairs, counts, beside, unread)


def holds_pairs(columns: Collection[str], fields: Mapping[str, str]) -> bool:
    """Whether rows with these columns hold pairs, and not prompts alone."""
    sides = {fields.get(part, part) for part in ("chosen", "rejected")}
    return sides <= set(columns) or not set(ANSWER_COLUMNS).isdisjoint(columns)


def _read_row(row: Row, how: _How, problems: Problems) -> list[_Read]:
    """The pairs of a row as ``_read_pair`` reads them, wherever their parts stand."""
    try:
        found = locate(
            row,
            how.names,
            how.scored_pairs,
            implicit_prompt=how.implicit_prompt,
            ignored=how.beside.ignored,
        )
    except RowFault as fault:
        problems.add(row.origin, str(fault), field=fault.field)
        return []
    problems.counts["scored_rows"] += any(one.scored for one in found)
    problems.counts["no_preference"] += not found
    pairs = []
    for one in found:
        how.beside.read.update(one.columns.values(), one.scored)
        margin = scored_margin(one.margin, one.scored, how.names)
        there = how._replace(names=one.names, columns=one.columns, margin=margin)
        if pair := _read_pair(one.row, there, problems):
            pairs.append(pair)
    return pairs


def _read_pair(given: Row, how: _How, problems: Problems) -> _Read | None:
    """None where problems were noted."""
    names = how.names
    try:
        row = unpack(
            given,
            (names["prompt"], history_column(names)),
            (names["chosen"], names["rejected"]),
            how.parse_json,
            how.beside,
        )
        if row is None:
            return None
        layout, pair, notes = _parse(row, how)
    except PairFault as fault:
        for column, text in fault.args:
            problems.add(given.origin, text, field=how.columns.get(column, column))
        return None
    except RowFault as fault:
        problems.add(given.origin, str(fault), field=fault.field)
        return None
    note, text = compare_ratings(row.data)
    if text:
        problems.remark(given.origin, text)
    parts = (*names.values(), history_column(names))
    if unread_keys(*(row.data.get(name) for name in parts)):
        notes.append("keys_left_out")
    margin = how.margin or find_margin(row.data, names.get("margin"))
    return _Read(layout, replace(pair, margin=margin.value), [*notes, note], margin)


def _refuse_mixed(
    layouts: list[tuple[str, _Layout]], names: dict[str, str], problems: Problems
) -> None:
    def column(one: _Layout, usual: _Layout) -> str:
        return names["prompt" if one.prompt != usual.prompt else "chosen"]

    refuse_mixed(layouts, problems, field=column)


def _counts(pairs: list[PreferencePair], notes: Counter[str]) -> dict[str, int]:
    contents = {(p.prompt, p.chosen, p.rejected) for p in pairs}
    return {
        "pairs": len(pairs),
        "ends_early": sum(not (p.chosen and p.rejected) for p in pairs),
        "prompt_repeated": notes["prompt_repeated"],
        "begins_with_prompt": sum(_begin_with_prompt(p) for p in pairs),
        "continued": sum(continues(p.prompt, p.chosen) for p in pairs),
        "several_turns": sum(map(_several_turns, pairs)),
        "duplicate_prompts": len(pairs) - len({p.prompt for p in pairs}),
        "duplicate_pairs": len(pairs) - len(contents),
        "with_system": notes["with_system"],
        "with_history": notes["with_history"],
        "keys_left_out": notes["keys_left_out"],
        "with_margin": sum(pair.margin is not None for pair in pairs),
        "tied": notes["tied"],
        "scored_otherwise": notes["scored_otherwise"],
    }


def _several_turns(pair: PreferencePair) -> bool:
    sides = (pair.chosen, pair.rejected)
    if isinstance(pair.prompt, str):
        texts = [side for side in sides if isinstance(side, str)]
        return is_transcript(pair.prompt) and any(map(asks, texts))
    return max(map(len, sides)) > 1


def _begin_with_prompt(pair: PreferencePair) -> bool:
    begin, sides = pair.prompt, [pair.chosen, pair.rejected]
    if continues(begin, pair.chosen):
        # The message that they go on with would stand twice.
        begin = as_messages(begin, "")[-1].content
        sides = [as_messages(side, "")[0].content for side in sides]
    return isinstance(begin, str) and all(
        isinstance(text, str) and text.startswith(begin) for text in sides
    )


def _parse(row: Row, how: _How) -> tuple[_Layout, PreferencePair, list[str]]:
    """(layout, pair, notes) of a row; raises PairFault with all that is wrong."""
    names = how.names
    faults: list[tuple[str, str]] = []
    chosen = _side(row, names["chosen"], faults)
    rejected = _side(row, names["rejected"], faults)
    prompt: Written | None = None
    used = {names[part] for part in PARTS}
    # A column that was named must be there; otherwise the prompt may be implicit.
    if names["prompt"] in row.data or names["prompt"] != "prompt":
        prompt = _side(row, names["prompt"], faults)
    elif "instruction" in row.data:
        names = {**names, "prompt": "instruction"}
        used |= {"instruction", "input"}
        prompt = read_instruction(row.data, faults)
    if faults:
        raise PairFault(*faults)
    if isinstance(chosen, str) != isinstance(rejected, str):
        text = (
            f"mixed formats: {names['chosen']} is {_format(chosen)}, "
            f"{names['rejected']} is {_format(rejected)}; wanted the same for both"
        )
        raise PairFault((names["rejected"], text))
    kind = "an implicit prompt" if prompt is None else names["prompt"]
    layout = _Layout(f"{kind} ({_format(prompt or chosen)})", _format(chosen))
    separator = "\n" if names["prompt"] == "instruction" else ""
    pair = PreferencePair(
        prompt or "", chosen, rejected, row.origin, prompt is None, separator
    )
    # The equal ones are left to the caller; there is nothing in them to split.
    if chosen == rejected:
        how.beside.read.update(used)
        return layout, pair, []
    earlier = read_earlier(row.data, how.names, how.beside.ignored)
    used.update(earlier.columns.values())
    if pair.implicit:
        pair, note = _split(pair, row, used, how), ""
    else:
        pair, note = join_explicit(pair, names)
    pair = _put_after(earlier, pair, row, how)
    _look(pair, row, used, how)
    return layout, pair, [note, *(f"with_{part}" for part in earlier.columns)]


def _split(pair: PreferencePair, row: Row, used: set[str], how: _How) -> PreferencePair:
    try:
        return split_implicit(pair, how.names)
    except PairFault:
        # Without a beginning every question beside the answers is left out.
        if how.beside.look(row, used, "", implicit=True, meant=how.implicit_prompt):
            raise PairFault() from None
        if how.bare and share_nothing(pair):
            return pair
        raise


def _put_after(
    earlier: Earlier, pair: PreferencePair, row: Row, how: _How
) -> PreferencePair:
    """The pair behind its system message and earlier turns."""
    if not earlier.messages:
        return pair
    for column in earlier.columns.values():
        how.beside.refuse("turns", column, row.origin)
    sides = pair.prompt, pair.chosen, pair.rejected
    try:
        prompt, chosen, rejected = as_turns(*sides, implicit=pair.implicit)
    except BadInput as error:
        raise PairFault((how.names["chosen"], str(error))) from None
    return replace(
        pair,
        prompt=put_before(earlier, as_messages(prompt, "user")),
        chosen=as_messages(chosen, "assistant"),
        rejected=as_messages(rejected, "assistant"),
    )


def _look(pair: PreferencePair, row: Row, used: set[str], how: _How) -> None:
    """Note what the row says beside the pair."""
    refused = how.beside.look(
        row,
        used,
        pair.prompt,
        (pair.chosen, pair.rejected),
        implicit=pair.implicit,
        meant=how.implicit_prompt,
    )
    if refused or not pair.implicit or how.implicit_prompt:
        return
    chosen = row.data[how.names["chosen"]]
    if isinstance(chosen, str) and not is_transcript(chosen):
        how.beside.refuse("untold", how.names["chosen"], row.origin)


def _format(content: Written) -> str:
    return "text" if isinstance(content, str) else "message"


def _side(row: Row, name: str, faults: list[tuple[str, str]]) -> Written:
    if name not in row.data:
        faults.append((name, missing_field(name, row.data)))
        return ""
    content, found = parse_content(row.data[name], name)
    faults.extend((name, text) for text in found)
    return content
