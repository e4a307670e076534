"""From the name of a preference set to rows of token ids, told on the way."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from tpmm_jax.data.batches import PairRow
from tpmm_jax.data.boundary import Side
from tpmm_jax.data.pair_tokens import count_table, encode_pairs
from tpmm_jax.data.pairs import load_pairs


def load_rows(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str = "train",
    chat: bool,
    max_prompt_length: int,
    max_completion_length: int,
    truncate: Side = "left",
    note: Callable[[str], None],
    warn: Callable[[str], None],
) -> list[PairRow]:
    """Returns a preference set's pairs as token ids.

    Args:
      source, split: see ``pairs.load_pairs``; the others: see
        ``pair_tokens.encode_pairs``.
      note, warn: called with the counts of what was read, cut and dropped, and with
        the readers' warnings.

    Raises:
      BadInput: as these two do.
    """
    found = load_pairs(source, split=split)
    for warning in found.warnings:
        warn(warning)
    rows, counts = encode_pairs(
        tokenizer,
        found.pairs,
        chat=chat,
        max_prompt_length=max_prompt_length,
        max_completion_length=max_completion_length,
        truncate=truncate,
    )
    for what, count in count_table({**found.counts, **counts}):
        if count:
            note(f"{count:>8,} {what}")
    return rows


def by_prompt(rows: Sequence[PairRow]) -> list[list[PairRow]]:
    """Returns the rows of each prompt, in the order of their first."""
    groups: dict[tuple[int, ...], list[PairRow]] = {}
    for row in rows:
        groups.setdefault(tuple(row.prompt_ids), []).append(row)
    return list(groups.values())
