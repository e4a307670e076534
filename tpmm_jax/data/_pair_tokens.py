"""Preference pairs as rows of token ids, with what was cut and dropped counted.

What holds of every row: BOS stands once, at the front of the prompt, if the tokenizer
(or the chat template) puts it there; a completion does not begin with BOS and ends,
unless it was cut, with the first id at which sampling stops; its ids are those it has
in the joined text. Where tokens merge across the boundary (a prompt that ends in a
space, say), the prompt keeps its ids, as at sampling time, and the completion is
tokenised apart without gaining a leading space; this is counted as boundary_merged.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from tpmm_jax.data._boundary import (
    Ended,
    cut_prompt,
    end_completion,
    leading_ids,
    text_ids,
    typed_end,
    with_leading,
    without_bos,
    without_end,
)
from tpmm_jax.data._earlier import as_turns
from tpmm_jax.data._joining import Joined, Joiner
from tpmm_jax.data._rendering import TemplateStopped
from tpmm_jax.data._templates import Writer
from tpmm_jax.data.checks import group_of
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.messages import as_messages
from tpmm_jax.data.pairs import PreferencePair
from tpmm_jax.data.problems import Problems
from tpmm_jax.data.records import PairRow
from tpmm_jax.errors import BadInput

_CHUNK = 4096
_PAIR_COUNTS = {
    "pairs": "pairs given to the tokenizer",
    "rows": "pairs kept",
    "prompt_truncated": "prompts cut to the limit",
    "chosen_truncated": "chosen completions cut on the right, without their end",
    "rejected_truncated": "rejected completions cut on the right, without their end",
    "identical_after_truncation": "pairs dropped: completions equal once cut",
    "identical_tokens": "pairs dropped: completions have equal tokens",
    "boundary_merged": "completions tokenised apart from their prompt",
    "template_rewrote_prompt": "completions whose template alters the open prompt",
    "message_left_out": "pairs of which the template leaves out or alters a message",
    "special_in_message": "pairs with a special token written in a message",
    "bos_removed": "completions that began with BOS, now without",
    "behind_end": "completions with white space or an end behind their end, cut off",
    "eos_inside": "completions with text behind EOS or an end of turn, not used",
    "unknown_tokens": "completions with text unknown to the tokenizer",
}
# The readers' counts too, so that one table can show them all.
_READ_COUNTS = {
    "rows_read": "rows read",
    "blank_lines": "blank lines passed over",
    "malformed": "malformed rows dropped",
    "not_encoded": "pairs dropped: they cannot be written or tokenised",
    "identical": "pairs dropped: chosen equals rejected",
    "ends_early": "pairs in which one side ends where the other goes on",
    "prompt_repeated": "pairs whose completions repeated the prompt, now without",
    "begins_with_prompt": "pairs whose completions begin with the prompt, kept so",
    "continued": "pairs that go on with the assistant's message in their prompt",
    "scored_rows": "rows of several scored answers, made pairs of",
    "no_preference": "rows dropped: their answers are scored alike",
    "several_turns": "pairs whose completions hold several turns, all trained on",
    "duplicate_prompts": "prompts that repeat an earlier one",
    "duplicate_pairs": "pairs that repeat an earlier one",
    "with_system": "pairs with a system message of a column of its own",
    "with_history": "pairs with earlier turns of a column of their own",
    "keys_left_out": "pairs whose messages have more than role and content, left out",
    "with_margin": "pairs with a margin, from a column or as a difference of scores",
    "answers": "scored answers",
    "over_long": "pairs dropped: longer than data.max_length",
    "cut_answers": "scored answers that were cut when drawn, read without an end",
    "over_long_answers": "scored answers dropped: longer than data.max_length",
    "repeated_answers": "scored answers that repeat another one, used once",
    "equal_scores": "pairs dropped: scored alike",
    "below_min_margin": "pairs dropped: a margin below data.min_margin",
    "without_partner": "scored answers without another one to compare with",
    "tied": "pairs whose stated scores are equal",
    "scored_otherwise": "pairs whose stated scores prefer rejected",
}


class EncodedPairs(NamedTuple):
    """Rows ready for ``collate``, and what was counted (see ``count_table``)."""

    rows: list[PairRow]
    counts: dict[str, int]


class _Texts(NamedTuple):
    """What is tokenised of one pair.

    Attributes:
      header: the end of the prompt that opens the assistant's turn.
    """

    pair: PreferencePair
    prompt: str
    header: str
    chosen: str
    rejected: str
    rewritten: int


def count_table(counts: dict[str, int]) -> list[tuple[str, int]]:
    """(what, how many) for printing, in a fixed order, zeros included."""
    texts = _READ_COUNTS | _PAIR_COUNTS
    known = [(text, counts[key]) for key, text in texts.items() if key in counts]
    return known + [(key, n) for key, n in counts.items() if key not in texts]


def encode_pairs(
    codec: TextCodec,
    pairs: Sequence[PreferencePair],
    problems: Problems,
    columns: Mapping[str, str] | None = None,
    *,
    keep_equal: bool = False,
) -> EncodedPairs:
    """Encode preference pairs, dropping those that teach nothing.

    A pair whose completions have equal ids is dropped and counted, whether they were
    cut to equality or differ only in ways the tokenizer does not see.

    Args:
      codec: of a tokenizer that has EOS.
      pairs: texts or conversations; pairs of sampled ids are ``PairRow`` already.
      problems: where pairs that cannot be encoded are noted; the caller settles them.
      columns: the names of prompt, chosen and rejected in the source, where they are
        others.
      keep_equal: pairs are kept whose completions have equal ids.

    Returns:
      The rows in order, and the counts.

    Raises:
      BadInput: no EOS, or no chat template.
    """
    codec.require_eos()
    leading = leading_ids(codec)
    joiner, writer = Joiner(codec.tokenizer), Writer(codec)
    counts = Counter[str](dict.fromkeys(_PAIR_COUNTS, 0))
    rows: list[PairRow] = []
    for start in range(0, len(pairs), _CHUNK):
        texts = _write(codec, writer, pairs[start : start + _CHUNK], problems)
        for text, whole, cut, faults in _tokenise(
            codec, joiner, leading, texts, counts
        ):
            # The parts of a pair of whole texts are its sides.
            if not whole.prompt_ids and text.pair.prompt:
                faults = {"prompt": "the prompt has no tokens"} | faults
            if _has_fault(codec, whole, faults, problems, columns or {}):
                continue
            cut_ids = cut_prompt(codec, whole.prompt_ids)
            row = replace(
                whole, prompt_ids=cut_ids, group=group_of(text.pair), pair=text.pair
            )
            counts["prompt_truncated"] += len(row.prompt_ids) < len(whole.prompt_ids)
            counts["template_rewrote_prompt"] += text.rewritten
            if codec.chat:
                counts.update(_message_counts(joiner, text))
            if keep_equal or row.chosen_ids != row.rejected_ids:
                rows.append(row)
            else:
                counts["identical_after_truncation" if cut else "identical_tokens"] += 1
    counts.update(pairs=len(pairs), rows=len(rows))
    return EncodedPairs(rows, dict(counts))


def _tokenise(
    codec: TextCodec,
    joiner: Joiner,
    leading: list[int],
    texts: list[_Texts],
    counts: Counter[str],
) -> Iterator[tuple[_Texts, PairRow, bool, dict[str, str]]]:
    """(texts, row, whether a completion was cut, what is wrong with a part) of each.

    The row's prompt is not cut yet.
    """
    prompts = text_ids(codec.tokenizer, [t.prompt for t in texts])
    fronts = joiner.fronts([t.prompt for t in texts], prompts)
    chosen = joiner.completions(fronts, [t.chosen for t in texts])
    rejected = joiner.completions(fronts, [t.rejected for t in texts])
    for text, ids, one, other in zip(texts, prompts, chosen, rejected):
        left = _end_side(codec, "chosen", text.pair, one, counts)
        right = _end_side(codec, "rejected", text.pair, other, counts)
        prompt_ids = with_leading(ids, leading)
        row = PairRow(
            prompt_ids, left.ids, right.ids, text.pair.origin, text.pair.margin
        )
        faults = {"chosen": left.fault, "rejected": right.fault}
        yield text, row, left.cut or right.cut, faults


def _end_side(
    codec: TextCodec,
    name: str,
    pair: PreferencePair,
    joined: Joined,
    counts: Counter[str],
) -> Ended:
    """The ids of chosen or rejected up to their end."""
    clean = without_bos(codec, joined.ids)
    turns = as_messages(getattr(pair, name), "assistant")
    ended = end_completion(codec, clean, turns=len(turns))
    if not pair.ended:
        # One without any text keeps its end: no row is empty.
        ended = ended._replace(ids=without_end(codec, ended.ids) or ended.ids)
    if len(turns) > 1:
        typed = typed_end(codec, [turn.content for turn in turns])
        ended = ended._replace(fault=typed)
    unknown = codec.unknown_id
    counts["boundary_merged"] += joined.merged
    counts[f"{name}_truncated"] += ended.cut
    counts["bos_removed"] += len(clean) < len(joined.ids)
    counts["behind_end"] += ended.trailing and not ended.fault
    counts["eos_inside"] += bool(ended.fault)
    counts["unknown_tokens"] += unknown is not None and unknown in ended.ids
    return ended


def _has_fault(
    codec: TextCodec,
    row: PairRow,
    faults: dict[str, str],
    problems: Problems,
    columns: Mapping[str, str],
) -> bool:
    """Whether a row cannot be used; why is noted."""
    unknown = codec.embedding_fault(row.prompt_ids, row.chosen_ids, row.rejected_ids)
    if unknown:
        problems.add(row.origin, unknown)
    for part, fault in faults.items():
        if fault:
            column = columns.get(part, part)
            problems.add(row.origin, f"field {column!r}: {fault}", field=column)
    return bool(unknown) or any(faults.values())


def _message_counts(joiner: Joiner, texts: _Texts) -> dict[str, int]:
    """What a chat template made of the messages of a pair, as they are in the data."""
    pair, header = texts.pair, texts.header
    written = (
        (pair.prompt, texts.prompt),
        (pair.chosen, header + texts.chosen),
        (pair.rejected, header + texts.rejected),
    )
    said = [
        (message.content, text)
        for part, text in written
        for message in as_messages(part, "user")
    ]
    return {
        "message_left_out": any(one.strip() not in text for one, text in said),
        "special_in_message": joiner.holds_special([one for one, _ in said]),
    }


def _write(
    codec: TextCodec,
    writer: Writer,
    pairs: Sequence[PreferencePair],
    problems: Problems,
) -> list[_Texts]:
    """The texts of each pair; those that cannot be written are noted instead."""
    texts = []
    for given in pairs:
        try:
            pair = _as_turns(given) if codec.chat else given
            first = as_messages(pair.chosen, "assistant")[0].role
            opened = writer.open_prompt(pair.prompt, next_role=first)
            sides = [
                writer.completion(pair.prompt, opened, side)
                for side in (pair.chosen, pair.rejected)
            ]
            if not pair.ended:
                sides = [(x.removesuffix(writer.closing), kept) for x, kept in sides]
        except TemplateStopped as error:
            raise TemplateStopped(f"{given.origin}: {error}") from None
        except BadInput as error:
            problems.add(given.origin, str(error))
            continue
        (chosen, one), (rejected, other) = sides
        rewritten = (not one) + (not other)
        prompt = opened.text + ("" if codec.chat else pair.separator)
        texts.append(_Texts(pair, prompt, opened.header, chosen, rejected, rewritten))
    return texts


def _as_turns(pair: PreferencePair) -> PreferencePair:
    parts = as_turns(pair.prompt, pair.chosen, pair.rejected, implicit=pair.implicit)
    return replace(pair, prompt=parts[0], chosen=parts[1], rejected=parts[2])
