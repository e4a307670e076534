"""Preference pairs as rows of token ids, with what was cut and dropped counted.

What holds of every row: BOS stands once, at the front of the prompt, if the tokenizer
(or the chat template) puts it there; a completion does not begin with BOS and ends
with EOS once, unless it was cut; its ids are those it has in the joined text. Where
tokens merge across the boundary (a prompt that ends in a space, say), the prompt
keeps its ids, as at sampling time, and the completion is tokenised apart without
gaining a leading space; this is counted as boundary_merged.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

from tpmm_jax.data._boundary import (
    cut_prompt,
    end_completion,
    leading_ids,
    text_ids,
    with_leading,
    without_bos,
)
from tpmm_jax.data._joining import Joined, Joiner
from tpmm_jax.data._templates import Writer
from tpmm_jax.data._transcripts import (
    completion_messages,
    is_transcript,
    prompt_messages,
)
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
    "eos_inside": "completions with EOS or an end of turn before their end",
    "unknown_tokens": "completions with text unknown to the tokenizer",
}
# The readers' counts too, so that one table can show them all.
_READ_COUNTS = {
    "rows_read": "rows read",
    "malformed": "malformed rows dropped",
    "not_encoded": "pairs dropped: they cannot be written or tokenised",
    "identical": "pairs dropped: chosen equals rejected",
    "ends_early": "pairs in which one side ends where the other goes on",
    "prompt_repeated": "pairs whose completions repeated the prompt, now without",
    "begins_with_prompt": "pairs whose completions begin with the prompt, kept so",
    "several_turns": "pairs whose completions hold several turns, all trained on",
    "duplicate_prompts": "prompts that repeat an earlier one",
    "duplicate_pairs": "pairs that repeat an earlier one",
    "keys_left_out": "pairs whose messages have more than role and content, left out",
    "tied": "pairs whose stated scores are equal",
    "scored_otherwise": "pairs whose stated scores prefer rejected",
}


class EncodedPairs(NamedTuple):
    """Rows ready for ``collate``, and what was counted (see ``count_table``)."""

    rows: list[PairRow]
    counts: dict[str, int]


class _Texts(NamedTuple):
    """What is tokenised of one pair."""

    pair: PreferencePair
    prompt: str
    chosen: str
    rejected: str
    rewritten: int


class _Side(NamedTuple):
    """A completion's ids, and what is counted of it."""

    ids: list[int]
    truncated: bool
    counts: dict[str, int]


class _Tokens(NamedTuple):
    """What a pair is in tokens, its prompt not cut yet."""

    texts: _Texts
    prompt: list[int]
    chosen: _Side
    rejected: _Side


def count_table(counts: dict[str, int]) -> list[tuple[str, int]]:
    """(what, how many) for printing, in a fixed order, zeros included."""
    texts = _READ_COUNTS | _PAIR_COUNTS
    known = [(text, counts[key]) for key, text in texts.items() if key in counts]
    return known + [(key, n) for key, n in counts.items() if key not in texts]


def encode_pairs(
    codec: TextCodec, pairs: Sequence[PreferencePair], problems: Problems
) -> EncodedPairs:
    """Encode preference pairs, dropping those that teach nothing.

    A pair whose completions have equal ids is dropped and counted, whether they were
    cut to equality or differ only in ways the tokenizer does not see.

    Args:
      codec: of a tokenizer that has EOS.
      pairs: texts or conversations; pairs of sampled ids are ``PairRow`` already.
      problems: where pairs that cannot be encoded are noted; the caller settles them.

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
        for pair in _tokenise(codec, joiner, leading, texts):
            counts.update(pair.chosen.counts)
            counts.update(pair.rejected.counts)
            if _has_fault(codec, pair, problems):
                continue
            row = _row(codec, pair)
            counts.update(_row_counts(codec, joiner, pair, row))
            if row.chosen_ids != row.rejected_ids:
                rows.append(row)
    counts.update(pairs=len(pairs), rows=len(rows))
    return EncodedPairs(rows, dict(counts))


def _tokenise(
    codec: TextCodec, joiner: Joiner, leading: list[int], texts: list[_Texts]
) -> Iterator[_Tokens]:
    prompts = text_ids(codec.tokenizer, [t.prompt for t in texts])
    fronts = joiner.fronts([t.prompt for t in texts], prompts)
    chosen = joiner.completions(fronts, [t.chosen for t in texts])
    rejected = joiner.completions(fronts, [t.rejected for t in texts])
    for text, ids, one, other in zip(texts, prompts, chosen, rejected):
        yield _Tokens(
            text,
            with_leading(ids, leading),
            _side(codec, "chosen", text.pair, one),
            _side(codec, "rejected", text.pair, other),
        )


def _side(codec: TextCodec, name: str, pair: PreferencePair, joined: Joined) -> _Side:
    """The chosen or the rejected completion of a pair."""
    clean = without_bos(codec, joined.ids)
    ids, truncated = end_completion(codec, clean)
    # Between the turns of one completion an end is in its place.
    one_turn = len(as_messages(getattr(pair, name), "assistant")) == 1
    counts: dict[str, int] = {
        "boundary_merged": joined.merged,
        f"{name}_truncated": truncated,
        "bos_removed": len(clean) < len(joined.ids),
        "eos_inside": one_turn and not set(codec.eos_ids).isdisjoint(ids[:-1]),
        "unknown_tokens": codec.unknown_id is not None and codec.unknown_id in ids,
    }
    return _Side(ids, truncated, counts)


def _has_fault(codec: TextCodec, pair: _Tokens, problems: Problems) -> bool:
    origin = pair.texts.pair.origin
    if not pair.prompt:
        problems.add(origin, "the prompt has no tokens", field="prompt")
        return True
    parts = (pair.prompt, pair.chosen.ids, pair.rejected.ids)
    fault = codec.embedding_fault(*parts)
    if fault:
        problems.add(origin, fault)
    return bool(fault)


def _row(codec: TextCodec, pair: _Tokens) -> PairRow:
    prompt = cut_prompt(codec, pair.prompt)
    return PairRow(prompt, pair.chosen.ids, pair.rejected.ids, pair.texts.pair.origin)


def _row_counts(
    codec: TextCodec, joiner: Joiner, pair: _Tokens, row: PairRow
) -> dict[str, int]:
    counts = {
        "prompt_truncated": len(row.prompt_ids) < len(pair.prompt),
        "template_rewrote_prompt": pair.texts.rewritten,
    }
    if codec.chat:
        said = _said(pair.texts.pair)
        counts["message_left_out"] = _leaves_out(pair.texts, said)
        counts["special_in_message"] = joiner.holds_special(said)
    if row.chosen_ids == row.rejected_ids:
        cut = pair.chosen.truncated or pair.rejected.truncated
        counts["identical_after_truncation" if cut else "identical_tokens"] = 1
    return counts


def _said(pair: PreferencePair) -> list[str]:
    """The texts and messages of a pair, as they are in the data."""
    parts = (pair.prompt, pair.chosen, pair.rejected)
    return [m.content for part in parts for m in as_messages(part, "user")]


def _leaves_out(texts: _Texts, said: list[str]) -> bool:
    written = texts.prompt + texts.chosen + texts.rejected
    return any(text.strip() not in written for text in said)


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
            pair = _for_template(given) if codec.chat else _for_text(given)
            prompt = writer.prompt(pair.prompt)
            sides = [
                writer.completion(pair.prompt, prompt, side)
                for side in (pair.chosen, pair.rejected)
            ]
        except BadInput as error:
            problems.add(given.origin, str(error))
            continue
        (chosen, one), (rejected, other) = sides
        rewritten = (not one) + (not other)
        texts.append(_Texts(pair, prompt, chosen, rejected, rewritten))
    return texts


def _for_text(pair: PreferencePair) -> PreferencePair:
    if not pair.separator or not isinstance(pair.prompt, str):
        return pair
    return replace(pair, prompt=pair.prompt + pair.separator)


def _for_template(pair: PreferencePair) -> PreferencePair:
    """The pair as turns: a transcript's, or one of the user and one that answers."""
    prompt, sides = pair.prompt, (pair.chosen, pair.rejected)
    if not (isinstance(prompt, str) and all(isinstance(s, str) for s in sides)):
        return pair
    texts = cast(tuple[str, str], sides)
    if is_transcript(prompt):
        chosen, rejected = (completion_messages(prompt, text) for text in texts)
        front = prompt_messages(prompt, answered=True)
        return replace(pair, prompt=front, chosen=chosen, rejected=rejected)
    if pair.implicit:
        # The space at which an implicit prompt was cut opens no turn.
        texts = (texts[0].lstrip(" \t"), texts[1].lstrip(" \t"))
    return replace(pair, chosen=texts[0], rejected=texts[1])
