"""What a reward model is trained and tested on: pairs of token ids with margins.

Three kinds of sources give the same rows: preference sets, rated texts, and the scored
answers of a run. A row is read whole, so it needs no prompt: a text that stands alone
follows BOS, where the tokenizer has one. No row is cut; longer ones are dropped and
counted. What is held out is decided by content and seed, before answers are paired.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tpmm_jax.data._pair_tokens import count_table, encode_pairs
from tpmm_jax.data.answer_pairs import as_pair, as_rows, pair_up, prompt_key
from tpmm_jax.data.checks import digest_key, length_counts, length_remark
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.pairs import PreferencePair
from tpmm_jax.data.prepare import (
    margin_text,
    prepare_pairs,
    remark_text,
    unread_text,
)
from tpmm_jax.data.problems import Problems
from tpmm_jax.data.ratings import Scored, read_ratings
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.data.table import pair_length
from tpmm_jax.errors import BadInput

# Apart from the loop's seeds of the same number.
_HELD_OUT, _TEXTS = 21, 22


@dataclass(frozen=True)
class RewardPairs:
    """A source of a reward model's pairs, read and, with a codec, encoded.

    Attributes:
      pairs: those that can be read, as texts; some of them may not be encoded.
      train, held_out: rows of token ids; no prompt, or text that stands alone, is in
        both. A row's group is its prompt, the unit of intervals; texts without prompts
        are in groups that share no text.
      counts: see ``_pair_tokens.count_table``.
      problems: what is wrong; ``settle`` refuses it, or counts what is left out.
      unread: the columns that no row was made of.
    """

    pairs: list[PreferencePair] = field(repr=False)
    train: list[PairRow] = field(repr=False)
    held_out: list[PairRow] = field(repr=False)
    counts: dict[str, int]
    problems: Problems = field(repr=False)
    unread: list[str]


def prepare_reward_pairs(
    data: RewardDataConfig,
    codec: TextCodec | None,
    *,
    seed: int = 0,
    holdout_fraction: float = 0.0,
    margins: bool = False,
    answers: Sequence[Scored] | None = None,
) -> RewardPairs:
    """Read, split, pair and encode.

    Args:
      data: validated.
      codec: of the reward model, made of ``data.reading()``; None: pairs of texts only.
      seed: of the split, and of the groups of texts without prompts.
      holdout_fraction: share of the prompts, or texts, that train nothing.
      margins: they are used, so that one which is missing or cannot be read is a fault
        of its row.
      answers: those of ``data.rollouts``, which ``store.rollouts`` reads.

    Raises:
      BadInput: no source of this name or kind. What is wrong with rows is in
        ``problems``.
    """
    if data.kind == "pairs":
        return _from_pairs(data, codec, seed, holdout_fraction, margins)
    problems = Problems(data.source, on_bad_rows=data.on_bad_rows)
    if data.kind == "rollouts":
        given = list(answers or ())
        counts, unread = {"answers": len(given)}, list[str]()
    else:
        found = read_ratings(data, problems)
        given, counts, unread = found.answers, found.counts, found.unread
        found.beside.settle(problems, "chat" if data.chat else "plain")
    if data.chat and (alone := [a for a in given if not a.prompt]):
        text = (
            "texts without a prompt, which a chat template cannot write; switch it off "
            "(data.chat=false), or give prompts or whole conversations"
        )
        problems.add(data.source, f"{len(alone):,} {text}", fatal=True)
        given = []
    if problems.refused:
        return RewardPairs([], [], [], counts, problems, unread)
    return _from_answers(
        given, counts, unread, data, codec, seed, holdout_fraction, problems
    )


def load_reward_pairs(
    data: RewardDataConfig,
    codec: TextCodec,
    *,
    seed: int,
    holdout_fraction: float,
    margins: bool,
    answers: Sequence[Scored] | None = None,
    note: Callable[[str], None],
    warn: Callable[[str], None],
) -> tuple[list[PairRow], list[PairRow]]:
    """Returns the rows that train, and those held out.

    Args:
      data, codec, seed, holdout_fraction, margins, answers: see
        ``prepare_reward_pairs``.
      note, warn: called with the counts of what was read and dropped, and with the
        rows that were left out.

    Raises:
      BadInput: as that does, or rows that are to be refused, all of them listed.
    """
    found = prepare_reward_pairs(
        data,
        codec,
        seed=seed,
        holdout_fraction=holdout_fraction,
        margins=margins,
        answers=answers,
    )
    if found.problems.settle():
        warn(found.problems.left_out())
    for what, count in count_table(found.counts):
        if count:
            note(f"{count:>8,} {what}")
    if found.unread:
        note(unread_text(data.source, found.unread))
    rows = [*found.train, *found.held_out]
    lengths = ((len(row.chosen_ids), len(row.rejected_ids)) for row in rows)
    if remark := length_remark(length_counts(lengths), "tokens"):
        note(f"{data.source}: {remark}")
    if remarks := remark_text(data.source, found.problems):
        warn(remarks)
    if text := margin_text(data.source, found.problems):
        note(text)
    return found.train, found.held_out


def fitting(
    rows: Sequence[PairRow], limit: int, say: Callable[[str], None], what: str
) -> list[PairRow]:
    """Returns the rows that fit the model; the others are dropped, never cut.

    Raises:
      BadInput: none is left.
    """
    kept = [row for row in rows if pair_length([row]) <= limit]
    if len(kept) < len(rows):
        dropped = len(rows) - len(kept)
        say(f"{what}: {dropped:,} pairs longer than {limit} tokens dropped")
    if not kept:
        raise BadInput(
            f"{what}: every pair is longer than the model's {limit} positions; use a "
            "model with a longer context, or shorter pairs"
        )
    return kept


def choose_held_out(groups: Iterable[str], fraction: float, seed: int) -> set[str]:
    """Returns the groups that train nothing: the first by a hash of seed and name.

    The order of the rows does not matter, and a group that stays in the data stays on
    its side unless it is near the border.
    """

    def place(group: str) -> bytes:
        text = f"{_HELD_OUT} {seed} {group}".encode()
        return hashlib.sha256(text).digest()

    known = sorted(set(groups), key=place)
    return set(known[: round(fraction * len(known))])


def _from_pairs(
    data: RewardDataConfig,
    codec: TextCodec | None,
    seed: int,
    fraction: float,
    margins: bool,
) -> RewardPairs:
    found = prepare_pairs(
        data.source,
        data.reading(),
        codec,
        margins=margins or data.min_margin > 0,
        bare=True,
    )
    kept, counts = found.rows, dict(found.counts)
    if data.min_margin > 0:
        kept = [r for r in kept if r.margin is None or r.margin >= data.min_margin]
        counts["below_min_margin"] = len(found.rows) - len(kept)
    short = [row for row in kept if pair_length([row]) <= data.max_length]
    counts["over_long"] = len(kept) - len(short)
    held = choose_held_out((row.group for row in short), fraction, seed)
    sides: dict[bool, list[PairRow]] = {True: [], False: []}
    for row in short:
        sides[row.group in held].append(row)
    counts["rows"] = len(short)
    problems, unread = found.problems, found.unread
    return RewardPairs(found.pairs, sides[False], sides[True], counts, problems, unread)


def _from_answers(
    answers: Sequence[Scored],
    counts: dict[str, int],
    unread: list[str],
    data: RewardDataConfig,
    codec: TextCodec | None,
    seed: int,
    fraction: float,
    problems: Problems,
) -> RewardPairs:
    ids: dict[str, PairRow] = {}
    tally = Counter[str](counts)
    if codec is not None:
        ids = _encode(answers, codec, data, problems, tally)
        answers = [answer for answer in answers if answer.origin in ids]
    names = [digest_key(prompt_key(answer)) for answer in answers]
    held = choose_held_out(names, fraction, seed)
    if any(answer.held_out for answer in answers):
        held = {n for n, answer in zip(names, answers) if answer.held_out}
    pairs: list[PreferencePair] = []
    rows: dict[bool, list[PairRow]] = {}
    for side in (False, True):
        some = [a for n, a in zip(names, answers) if (n in held) == side]
        choices, made = pair_up(some, data, [seed, _TEXTS, side])
        tally += made
        pairs += [as_pair(choice.better, choice.worse) for choice in choices]
        rows[side] = as_rows(choices, ids, tally) if codec is not None else []
    tally["pairs"] = len(pairs)
    if codec is not None:
        tally["rows"] = len(rows[False]) + len(rows[True])
    return RewardPairs(pairs, rows[False], rows[True], dict(tally), problems, unread)


def _encode(
    answers: Sequence[Scored],
    codec: TextCodec,
    data: RewardDataConfig,
    problems: Problems,
    counts: Counter[str],
) -> dict[str, PairRow]:
    """The ids of each answer by its origin, encoded once however many pairs it has."""
    columns = {side: data.fields.get("text", "text") for side in ("chosen", "rejected")}
    before = len(problems.origins())
    twice = [answer.twice() for answer in answers]
    rows, _ = encode_pairs(codec, twice, problems, columns, keep_equal=True)
    counts["not_encoded"] = len(problems.origins()) - before
    kept = [row for row in rows if pair_length([row]) <= data.max_length]
    counts["over_long_answers"] = len(rows) - len(kept)
    counts["cut_answers"] = sum(not answer.ended for answer in answers)
    return {row.origin: row for row in kept}
