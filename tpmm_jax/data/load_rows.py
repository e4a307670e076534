"""From the name of a preference set to rows of token ids, told on the way."""

from collections.abc import Callable, Collection, Sequence

from transformers import PreTrainedTokenizerBase

from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.offline import prepare_pairs
from tpmm_jax.data.pair_tokens import count_table
from tpmm_jax.data.records import PairRow


def load_rows(
    source: str,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    eos_ids: Collection[int],
    note: Callable[[str], None],
    warn: Callable[[str], None],
) -> list[PairRow]:
    """Returns a preference set's pairs as token ids.

    Args:
      source, data, eos_ids: see ``offline.prepare_pairs``.
      note, warn: called with the counts of what was read, cut and dropped, and with
        the rows that were left out.

    Raises:
      BadInput: as that does, or rows that are to be refused, all of them listed.
    """
    found = prepare_pairs(source, data, tokenizer, eos_ids=eos_ids)
    if found.problems.settle():
        warn(found.problems.left_out())
    for what, count in count_table(found.counts):
        if count:
            note(f"{count:>8,} {what}")
    return found.rows


def by_prompt(rows: Sequence[PairRow]) -> list[list[PairRow]]:
    """Returns the rows of each prompt, in the order of their first."""
    groups: dict[tuple[int, ...], list[PairRow]] = {}
    for row in rows:
        groups.setdefault(tuple(row.prompt_ids), []).append(row)
    return list(groups.values())
