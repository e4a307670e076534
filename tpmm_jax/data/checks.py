"""What can be said of a data set before training: repeats, lengths, ends, leaks."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

from tpmm_jax.data.messages import Content, Written, as_messages, without_ids
from tpmm_jax.data.pairs import PreferencePair
from tpmm_jax.data.problems import Defect
from tpmm_jax.data.records import PairRow

Key: TypeAlias = object
_LENGTHS = ("chosen_longer", "rejected_longer", "equally_long")
# Of the pairs; above this share of one side being the longer one is said.
_MOSTLY = 0.9
# How the readers' reasons end; names of columns and files stand before it.
_EMPTY = re.compile(r" is (empty|an empty (message )?list)$")


def content_key(content: Content) -> Key:
    """What two prompts or answers of one meaning share, whatever their format.

    A text is one message; white space at both ends counts for nothing.
    """
    text = without_ids(content)
    if text is None:
        return content
    messages = as_messages(text, "user")
    if len(messages) == 1:
        return messages[0].content.strip()
    return tuple((m.role, m.content.strip()) for m in messages)


def fold(key: Key) -> Key:
    """A content's key without case, white space and Unicode's two ways of accents."""
    if isinstance(key, str):
        return " ".join(unicodedata.normalize("NFC", key).casefold().split())
    if isinstance(key, tuple | frozenset):
        return type(key)(map(fold, key))
    return key


def pair_key(pair: PreferencePair) -> Key:
    """The same for a pair and for the pair with its sides swapped."""
    sides = frozenset((content_key(pair.chosen), content_key(pair.rejected)))
    return content_key(pair.prompt), sides


def group_of(pair: PreferencePair) -> str:
    """What the pairs of one prompt share; of a pair without one its two texts."""
    prompt, sides = fold(content_key(pair.prompt)), frozenset[Key]()
    if not pair.prompt:
        sides = frozenset(fold(content_key(x)) for x in (pair.chosen, pair.rejected))
    return digest_key((prompt, *sorted(map(str, sides))))


def units_of(row: PairRow) -> set[str]:
    """What of a row may not be on both sides of a split.

    That is its prompt; of texts that stand alone, each of the two.
    """
    if row.pair is None or row.pair.prompt:
        return {row.group}
    sides = row.pair.chosen, row.pair.rejected
    return {digest_key(fold(content_key(side))) for side in sides}


def digest_key(key: Key) -> str:
    """A short digest of a content's key."""
    return hashlib.sha256(repr(key).encode()).hexdigest()[:16]


def repeat_counts(pairs: Sequence[PreferencePair]) -> dict[str, int]:
    """Prompts and pairs that repeat an earlier one, and pairs labelled both ways."""
    prompts = {content_key(p.prompt) for p in pairs}
    labelled: dict[Key, set[Key]] = {}
    rows = set()
    for pair in pairs:
        key, chosen = pair_key(pair), content_key(pair.chosen)
        labelled.setdefault(key, set()).add(chosen)
        rows.add((key, chosen))
    return {
        "duplicate_prompts": len(pairs) - len(prompts),
        "duplicate_pairs": len(pairs) - len(rows),
        "labelled_both_ways": sum(len(chosen) > 1 for chosen in labelled.values()),
    }


def leak_counts(
    prompts: Iterable[Key],
    pairs: Iterable[Key],
    eval_prompts: Sequence[Key],
    eval_pairs: Sequence[Key],
) -> dict[str, int]:
    """How many evaluation rows have a prompt, or a whole pair, that is trained on.

    Case and white space make no other row.
    """
    known, whole = {fold(key) for key in prompts}, {fold(key) for key in pairs}
    return {
        "eval_rows": len(eval_prompts),
        "eval_same_prompt": sum(fold(key) in known for key in eval_prompts),
        "eval_same_pair": sum(fold(key) in whole for key in eval_pairs),
    }


def length_counts(lengths: Iterable[tuple[int, int]]) -> dict[str, int]:
    """Which side is longer, of (chosen, rejected) lengths in one unit."""
    counts = Counter[str](dict.fromkeys(_LENGTHS, 0))
    for chosen, rejected in lengths:
        counts["chosen_longer"] += chosen > rejected
        counts["rejected_longer"] += chosen < rejected
        counts["equally_long"] += chosen == rejected
    return dict(counts)


def length_remark(counts: Mapping[str, int], unit: str) -> str:
    """What is said where one side is nearly always the longer one; else ""."""
    compared = sum(counts[name] for name in _LENGTHS)
    for side in ("chosen", "rejected"):
        count = counts[f"{side}_longer"]
        if count > _MOSTLY * compared:
            return (
                f"{side} is longer, in {unit}, in {count:,} of {compared:,} pairs: a "
                "model may learn the length instead of what makes an answer good"
            )
    return ""


def text_lengths(pairs: Iterable[PreferencePair]) -> list[tuple[int, int]]:
    """The characters of chosen and rejected."""
    return [(_characters(p.chosen), _characters(p.rejected)) for p in pairs]


def _characters(content: Written) -> int:
    return sum(len(message.content) for message in as_messages(content, "assistant"))


def end_counts(
    rows: Sequence[PairRow], *, bos: int | None, ends: Collection[int]
) -> dict[str, int]:
    """Where BOS and the ends of completions stand.

    Returns:
      bos_first: rows that begin with BOS; bos_misplaced: rows in which it stands twice
      there, or before a completion (some templates open every turn with it, so that
      elsewhere it says nothing); ended_chosen, ended_rejected: completions whose last
      token ends them (those that were cut have none); tokens: of all prompts and
      completions.
    """
    counts = Counter[str](
        bos_first=0, bos_misplaced=0, ended_chosen=0, ended_rejected=0, tokens=0
    )
    for row in rows:
        prompt, chosen, rejected = row.prompt_ids, row.chosen_ids, row.rejected_ids
        # A whole text has no prompt, or BOS alone.
        counts["bos_first"] += prompt[:1] == [bos]
        if bos is not None and bos not in ends:
            twice = prompt[:2] == [bos, bos]
            counts["bos_misplaced"] += twice or bos in (chosen[0], rejected[0])
        counts["ended_chosen"] += chosen[-1] in ends
        counts["ended_rejected"] += rejected[-1] in ends
        counts["tokens"] += len(prompt) + len(chosen) + len(rejected)
    return dict(counts)


def empty_count(defects: Sequence[Defect]) -> int:
    """The rows in which a prompt, a side or a message is empty."""
    return len({d.origin for d in defects if _EMPTY.search(d.reason)})
