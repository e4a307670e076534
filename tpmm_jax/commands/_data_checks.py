"""Checking data: the files as a run reads and encodes them, counted over all."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

from tpmm_jax.data.checks import (
    Key,
    content_key,
    empty_count,
    end_counts,
    leak_counts,
    length_counts,
    length_remark,
    pair_key,
    repeat_counts,
    text_lengths,
)
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.messages import Content, as_dicts, without_ids
from tpmm_jax.data.pairs import PreferencePair, holds_pairs
from tpmm_jax.data.prepare import (
    margin_text,
    prepare_pairs,
    prepare_prompts,
    remark_text,
)
from tpmm_jax.data.problems import Defect, Problems, in_order, place_of
from tpmm_jax.data.prompts import Prompt
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.sources import read_rows
from tpmm_jax.errors import BadInput
from tpmm_jax.rewards import NamedScorer

_SCORED_AT_ONCE = 256


class PromptRow(NamedTuple):
    """A prompt's token ids, and where it stood."""

    origin: str
    ids: list[int]


@dataclass
class Checked:
    """What was found in all files.

    Attributes:
      rows: read, bad ones included.
      counts: by name; a check that was skipped has none.
      chat: whether a chat template wrote rows.
      skipped: (what was not checked, what it needs).
      refused: whether a run refuses a source, or these data, as a whole.
      usable: prompts that can be sampled from.
      unread: by file, the columns that no row is made of.
      unit: what lengths are counted in.
      remarks: what is not wrong, but worth a look.
    """

    rows: int = 0
    errors: list[Defect] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    pairs: list[PreferencePair] = field(default_factory=list)
    encoded: list[PairRow] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    usable: list[Prompt] = field(default_factory=list)
    encoded_prompts: list[PromptRow] = field(default_factory=list)
    chat: bool = False
    refused: bool = False
    unread: dict[str, list[str]] = field(default_factory=dict)
    unit: str = "tokens"
    remarks: list[str] = field(default_factory=list)

    @property
    def margins(self) -> list[float]:
        """The margins of all pairs that have one."""
        return [pair.margin for pair in self.pairs if pair.margin is not None]

    def add(self, defects: Iterable[Defect]) -> None:
        """Notes defects; those of a source that is read twice are listed once."""
        known = set(self.errors)
        self.errors += [defect for defect in defects if defect not in known]

    def note(self, problems: Problems) -> None:
        """Notes what is wrong with a source of a run."""
        self.add(problems.found)
        self.refused |= problems.refused

    def note_unread(self, source: str, columns: list[str]) -> None:
        """Notes the columns of a source that no row is made of."""
        if columns:
            self.unread[source] = columns

    def refuse(self, source: str, error: BadInput) -> None:
        """Notes why a run refuses a source as a whole."""
        reason = str(error).removeprefix(source).removeprefix(":").lstrip()
        self.add([Defect(place_of(source), None, reason, fatal=True)])
        self.refused = True


def check_pairs(
    files: Sequence[str],
    data: DataConfig,
    codec: TextCodec | None,
    *,
    auto_chat: bool = False,
) -> Checked:
    """Reads and encodes preference pairs as a run does, and counts.

    Args:
      files: sources like data.pairs.
      data: columns, and what becomes of bad rows.
      codec: made of the same ``data``; None: what needs a tokenizer is skipped.
      auto_chat: switch the chat template on for files whose rows are messages.
    """
    found = Checked()
    for file in files:
        try:
            one = prepare_pairs(file, data, codec, auto_chat=auto_chat)
        except BadInput as error:
            found.refuse(file, error)
            continue
        found.note(one.problems)
        found.note_unread(file, one.unread)
        if remarks := remark_text(file, one.problems):
            found.remarks.append(remarks)
        if text := margin_text(file, one.problems):
            found.remarks.append(text)
        counts = dict(one.counts)
        found.rows += counts["rows_read"]
        # In the summary "rows" are all that were read.
        counts["rows_kept"] = counts.pop("rows", 0)
        found.counts.update(counts)
        found.pairs += one.pairs
        found.chat |= one.chat
        found.encoded += one.rows
    found.counts["empty"] = empty_count(found.errors)
    found.counts.update(dict.fromkeys(("malformed", "identical", "pairs"), 0))
    # Over all files, not the sum of each one's.
    for name, count in repeat_counts(found.pairs).items():
        found.counts[name] = count
    count_encoded(found, codec)
    return found


def count_encoded(found: Checked, codec: TextCodec | None) -> None:
    """Compares lengths and, with a codec, counts where BOS and ends stand."""
    if codec is None:
        del found.counts["rows_kept"]
        found.skipped.append(("tokens, masks, BOS and EOS, cuts", "--model"))
        _compare_lengths(found, text_lengths(found.pairs), "characters")
        return
    sides = [(len(row.chosen_ids), len(row.rejected_ids)) for row in found.encoded]
    _compare_lengths(found, sides, "tokens")
    ends = set(codec.eos_ids)
    found.counts.update(end_counts(found.encoded, bos=codec.bos_id, ends=ends))


def _compare_lengths(
    found: Checked, lengths: Sequence[tuple[int, int]], unit: str
) -> None:
    counts = length_counts(lengths)
    found.counts.update(counts)
    found.unit = unit
    if remark := length_remark(counts, unit):
        found.remarks.append(remark)


def check_prompts(
    sources: Sequence[tuple[str, DataConfig]],
    codec: TextCodec | None,
    *,
    auto_chat: bool = False,
) -> Checked:
    """Reads and encodes prompts as a run does, and counts.

    Args:
      sources: files, and how each is read.
      codec, auto_chat: as of ``check_pairs``.
    """
    found = Checked()
    for file, data in sources:
        try:
            one = prepare_prompts(file, data, codec, auto_chat=auto_chat)
        except BadInput as error:
            found.refuse(file, error)
            continue
        found.note(one.problems)
        found.note_unread(file, one.unread)
        found.rows += one.counts["rows_read"]
        found.counts.update(one.counts)
        found.prompts += one.prompts
        found.usable += one.usable
        found.chat |= one.chat
        found.encoded_prompts += [
            PromptRow(prompt.origin, encoded.ids)
            for prompt, encoded in zip(one.usable, one.encoded)
        ]
    found.counts["empty"] = empty_count(found.errors)
    found.counts.update(dict.fromkeys(("malformed", "prompts"), 0))
    keys = [content_key(prompt.content) for prompt in found.prompts]
    found.counts["duplicate_prompts"] = len(keys) - len(set(keys))
    if codec is None:
        found.skipped.append(("tokens, BOS, cuts", "--model"))
        return found
    found.counts["prompts_kept"] = len(found.usable)
    ids = [row.ids for row in found.encoded_prompts]
    found.counts["bos_first"] = sum(i[0] == codec.bos_id for i in ids)
    found.counts["tokens"] = sum(map(len, ids))
    return found


def check_leaks(
    sources: Sequence[tuple[str, DataConfig]],
    found: Checked,
    evaluation: Iterable[Prompt] | None = None,
    *,
    auto_chat: bool = False,
) -> None:
    """Counts evaluation rows that are trained on.

    Args:
      sources: files of pairs or prompts, of which the prompts matter, and how each
        is read.
      found: what is trained on; what is found is noted there.
      evaluation: prompts that were read already; None: there are none.
      auto_chat: whether the data do not say if a chat template is used.
    """
    prompts: list[Key] = [content_key(p.content) for p in evaluation or ()]
    pairs: list[Key] = []
    for file, data in sources:
        try:
            some, whole, problems, unread = _read_held(file, data, auto_chat=auto_chat)
        except BadInput as error:
            found.refuse(file, error)
            continue
        prompts, pairs = prompts + some, pairs + whole
        found.add(problems.found)
        found.refused |= any(defect.fatal for defect in problems.found)
        found.note_unread(file, unread)
    if not sources and evaluation is None:
        found.skipped.append(("leaks into the evaluation", "--eval FILE"))
        return
    trained = [content_key(p.prompt) for p in found.pairs]
    trained += [content_key(p.content) for p in found.prompts]
    whole = [pair_key(p) for p in found.pairs]
    found.counts.update(leak_counts(trained, whole, prompts, pairs))


def _read_held(
    file: str, data: DataConfig, *, auto_chat: bool
) -> tuple[list[Key], list[Key], Problems, list[str]]:
    """Returns keys of prompts and of pairs, what is wrong, and unread columns.

    Nothing is wrong with a pair here that leaves its prompt as it is.
    """
    # Columns alone; what is wrong with rows is found again below.
    rows = read_rows(file, split=data.split, problems=Problems(file))
    columns = {name for row in rows for name in row.data}
    names = (data.prompt_field, data.fields.get("prompt", "prompt"))
    own = next((name for name in names if name in columns), None)
    whole: list[Key] = []
    if holds_pairs(columns, data.fields):
        pairs = prepare_pairs(file, data, None, auto_chat=auto_chat)
        whole = [pair_key(pair) for pair in pairs.pairs]
        if own is None and pairs.pairs:
            keys = [content_key(pair.prompt) for pair in pairs.pairs]
            problems = Problems(file)
            refused = [defect for defect in pairs.problems.found if defect.fatal]
            problems.found += refused
            return keys, whole, problems, pairs.unread
    data = replace(data, prompt_field=own or data.prompt_field)
    read = prepare_prompts(file, data, None, auto_chat=auto_chat)
    keys = [content_key(prompt.content) for prompt in read.prompts]
    unread = [n for n in read.unread if not whole or n in pairs.unread]
    return keys, whole, read.problems, unread


def check_labels(scorer: NamedScorer | None, found: Checked) -> None:
    """Counts the pairs whose rejected side a scorer prefers."""
    if scorer is None:
        found.skipped.append(("labels against a scorer", "--scorer module:function"))
        return
    counts = Counter[str](scorer_agrees=0, scorer_ties=0, scorer_contradicts=0)
    for start in range(0, len(found.pairs), _SCORED_AT_ONCE):
        pairs = found.pairs[start : start + _SCORED_AT_ONCE]
        rewards_BN = scorer(
            [plain_text(p.prompt) for p in pairs],
            [[plain_text(p.chosen), plain_text(p.rejected)] for p in pairs],
        )
        margins_B = rewards_BN[:, 0] - rewards_BN[:, 1]
        counts["scorer_agrees"] += int((margins_B > 0).sum())
        counts["scorer_ties"] += int((margins_B == 0).sum())
        counts["scorer_contradicts"] += int((margins_B < 0).sum())
    found.counts.update(counts)


def plain_text(content: Content) -> str:
    """A text as it is; one message's content; of several messages one line per turn."""
    text = without_ids(content)
    if isinstance(text, str) or text is None:
        return text or ""
    if len(text) == 1:
        return text[0].content
    return "\n".join(f"{m['role']}: {m['content']}" for m in as_dicts(text))


def summary(found: Checked) -> dict[str, Any]:
    """What --json prints; an error has a "row" where rows are counted, not lines."""
    errors = []
    for defect in in_order(found.errors):
        place = defect.origin
        row = {} if place.row is None else {"row": place.row}
        what = {"field": defect.field, "reason": defect.reason}
        errors.append({"file": place.file, "line": place.number, **row, **what})
    counts = {name: int(count) for name, count in found.counts.items()}
    return {
        "rows": found.rows,
        "errors": errors,
        "counts": counts,
        "unread_columns": list(dict.fromkeys(chain(*found.unread.values()))),
        "length_unit": found.unit,
        "remarks": found.remarks,
    }
