"""Pairs of a source as a run reads them, and a row as the data check shows it."""

from collections.abc import Sequence
from typing import Any

from tpmm_jax.data._pair_tokens import EncodedPairs, encode_pairs
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.pairs import PairSet, PreferencePair, read_pair_set
from tpmm_jax.data.problems import OnBadRows, Problems
from tpmm_jax.data.prompts import Prompt, read_prompt_set
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.view import count_text, mark, view_row


def load_pairs(
    source: str, *, on_bad_rows: OnBadRows = "refuse", **options: Any
) -> PairSet:
    """Reads pairs; raises BadInput for rows that a run refuses."""
    problems = Problems(source, on_bad_rows=on_bad_rows)
    found = read_pair_set(source, problems, **options)
    problems.settle()
    return found


def load_prompts(
    source: str, *, on_bad_rows: OnBadRows = "refuse", **options: Any
) -> list[Prompt]:
    """Reads prompts; raises BadInput for rows that a run refuses."""
    problems = Problems(source, on_bad_rows=on_bad_rows)
    found = read_prompt_set(source, problems, **options)
    problems.settle()
    return found.prompts


def encode(codec: TextCodec, pairs: Sequence[PreferencePair]) -> EncodedPairs:
    """Encodes pairs; raises BadInput for those that a run refuses."""
    problems = Problems("pairs")
    found = encode_pairs(codec, pairs, problems)
    problems.settle()
    return found


def describe_row(tokenizer: Any, row: PairRow) -> str:
    """A line per side: prompt tokens, [completion tokens], and · for padding."""
    return "\n".join(
        f"{name} ({count_text(tokens)}): {' '.join(map(mark, tokens))}"
        for name, tokens in view_row(tokenizer, row).items()
    )
