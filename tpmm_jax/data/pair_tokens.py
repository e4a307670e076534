"""Preference pairs as rows of token ids, with what was cut and dropped counted."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from tpmm_jax.data._transcripts import (
    completion_messages,
    is_transcript,
    prompt_messages,
)
from tpmm_jax.data.boundary import (
    Side,
    check_limit,
    cut_prompt,
    end_completion,
    leading_ids,
    require_eos,
    text_ids,
    with_leading,
    without_bos,
    without_embedding,
)
from tpmm_jax.data.joining import Joined, Joiner
from tpmm_jax.data.pairs import PreferencePair
from tpmm_jax.data.problems import Problems
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.templates import Writer
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
    ids: list[int]
    truncated: bool


def count_table(counts: dict[str, int]) -> list[tuple[str, int]]:
    """(what, how many) for printing, in a fixed order, zeros included."""
    texts = _READ_COUNTS | _PAIR_COUNTS
    known = [(text, counts[key]) for key, text in texts.items() if key in counts]
    return known + [(key, n) for key, n in counts.items() if key not in texts]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    *,
    chat: bool,
    max_prompt_length: int,
    max_completion_length: int,
    truncate: Side = "left",
    eos_ids: Collection[int] = (),
    problems: Problems | None = None,
) -> EncodedPairs:
    """Encode preference pairs, dropping those that teach nothing.

    A pair whose completions have equal ids is dropped and counted, whether they were
    cut to equality or differ only in ways the tokenizer does not see.

    Args:
      tokenizer: a Hugging Face tokenizer that has EOS.
      pairs: texts or conversations; pairs of sampled ids are ``PairRow`` already.
      chat: write prompts and completions with the chat template.
      max_prompt_length: the limit in tokens, BOS included.
      max_completion_length: the limit in tokens, EOS included; cut on the right.
      truncate: the side on which prompts are cut.
      eos_ids: further ids that end a completion, such as an end of turn at which
        sampling stops: behind one of them no EOS is put.
      problems: where pairs that cannot be encoded are noted; the caller then settles
        them. Without it they are raised here.

    Returns:
      The rows in order, and the counts.

    Raises:
      BadInput: a limit below 1, no EOS, no chat template; or, without ``problems``,
        pairs that cannot be encoded, all of them named, or no pair is left.
    """
    check_limit("max_prompt_length", max_prompt_length)
    check_limit("max_completion_length", max_completion_length)
    ends = {require_eos(tokenizer), *eos_ids}
    leading = leading_ids(tokenizer, chat=chat)
    counts = Counter[str](dict.fromkeys(_PAIR_COUNTS, 0))
    noted = Problems("pairs") if problems is None else problems
    joiner, writer = Joiner(tokenizer), Writer(tokenizer, chat=chat)
    rows: list[PairRow] = []
    for start in range(0, len(pairs), _CHUNK):
        texts = _write(writer, pairs[start : start + _CHUNK], noted, chat=chat)
        prompts = text_ids(tokenizer, [t.prompt for t in texts])
        fronts = joiner.fronts([t.prompt for t in texts], prompts)
        sides = [
            _sides(
                tokenizer,
                name,
                texts,
                joiner.completions(fronts, [getattr(t, name) for t in texts]),
                ends,
                max_completion_length,
                counts,
            )
            for name in ("chosen", "rejected")
        ]
        for text, ids, chosen, rejected in zip(texts, prompts, *sides):
            whole = with_leading(ids, leading)
            if not whole:
                noted.add(text.pair.origin, "the prompt has no tokens", field="prompt")
                continue
            fault = without_embedding(tokenizer, whole, chosen.ids, rejected.ids)
            if fault:
                noted.add(text.pair.origin, fault)
                continue
            cut = cut_prompt(whole, max_prompt_length, truncate, tokenizer.bos_token_id)
            counts["prompt_truncated"] += len(cut) < len(whole)
            counts["template_rewrote_prompt"] += text.rewritten
            if chat:
                counts["message_left_out"] += _leaves_out(text)
                counts["special_in_message"] += joiner.holds_special(_said(text.pair))
            if _differ(chosen, rejected, counts):
                origin = text.pair.origin
                rows.append(PairRow(cut, chosen.ids, rejected.ids, origin))
    counts.update(pairs=len(pairs), rows=len(rows))
    if problems is None:
        noted.settle()
        if not rows:
            raise BadInput(f"no pair is left to train on: {dict(counts)}")
    return EncodedPairs(rows, dict(counts))


def _said(pair: PreferencePair) -> list[str]:
    """The texts and messages of a pair, as they are in the data."""
    parts = (pair.prompt, pair.chosen, pair.rejected)
    return [
        text
        for part in parts
        for text in ([part] if isinstance(part, str) else [m.content for m in part])
    ]


def _leaves_out(text: _Texts) -> bool:
    written = text.prompt + text.chosen + text.rejected
    return any(said.strip() not in written for said in _said(text.pair))


def _differ(chosen: _Side, rejected: _Side, counts: Counter[str]) -> bool:
    if chosen.ids != rejected.ids:
        return True
    cut = chosen.truncated or rejected.truncated
    counts["identical_after_truncation" if cut else "identical_tokens"] += 1
    return False


def _write(
    writer: Writer,
    pairs: Sequence[PreferencePair],
    problems: Problems,
    *,
    chat: bool,
) -> list[_Texts]:
    """The texts of each pair; those that cannot be written are noted instead."""
    texts = []
    for given in pairs:
        try:
            pair = _for_template(given) if chat else _for_text(given)
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


def _sides(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    texts: list[_Texts],
    found: list[Joined],
    ends: set[int],
    max_length: int,
    counts: Counter[str],
) -> list[_Side]:
    """The chosen or the rejected completions of a chunk."""
    eos, bos = require_eos(tokenizer), tokenizer.bos_token_id
    unknown = tokenizer.unk_token_id
    # Some tokenizers name EOS as the unknown token too; it says nothing there.
    named = unknown not in (None, eos, bos, tokenizer.pad_token_id)
    sides = []
    for text, (raw, merged) in zip(texts, found):
        clean = without_bos(raw, bos, eos)
        ids, truncated = end_completion(clean, eos, ends, max_length)
        # Between the turns of one completion an end is in its place.
        turns = getattr(text.pair, name)
        one_turn = isinstance(turns, str) or len(turns) == 1
        counts["boundary_merged"] += merged
        counts[f"{name}_truncated"] += truncated
        counts["bos_removed"] += len(clean) < len(raw)
        counts["eos_inside"] += one_turn and not ends.isdisjoint(ids[:-1])
        counts["unknown_tokens"] += named and unknown in ids
        sides.append(_Side(ids, truncated))
    return sides
