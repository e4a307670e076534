"""Offline: a preference set as chunks, one an iteration."""

from collections.abc import Collection
from typing import Any, TypeAlias

import numpy as np

from tpmm_jax.config import Config
from tpmm_jax.data.batches import PairRow
from tpmm_jax.data.offline import prepare_pairs
from tpmm_jax.data.pair_tokens import count_table
from tpmm_jax.errors import BadInput
from tpmm_jax.report.console import RunConsole

PairChunks: TypeAlias = list[list[tuple[bool, PairRow]]]


def load_chunks(
    config: Config, tokenizer: Any, eos_ids: Collection[int], console: RunConsole
) -> PairChunks:
    """Returns T chunks of the pair set; whole prompts are held out.

    Raises:
      BadInput: rows that are to be refused, all of them listed, or too few are left.
    """
    source = config.data.pairs
    assert source is not None
    found = prepare_pairs(source, config.data, tokenizer, eos_ids=eos_ids)
    if found.problems.settle():
        console.warn(found.problems.left_out())
    for what, count in count_table(found.counts):
        if count:
            console.note(f"{count:>8,} {what}")
    if len(found.rows) < config.iterations:
        raise BadInput(
            f"{source} has {len(found.rows)} usable pairs for {config.iterations} "
            "iterations; lower iterations or give more pairs"
        )
    return split_chunks(config, found.rows)


def split_chunks(config: Config, rows: list[PairRow]) -> PairChunks:
    """Returns T chunks. A prompt is in one chunk, and held out there or not."""
    by_prompt: dict[tuple[int, ...], list[PairRow]] = {}
    for row in rows:
        by_prompt.setdefault(tuple(row.prompt_ids), []).append(row)
    groups = list(by_prompt.values())
    order = np.random.default_rng([config.seed, 3]).permutation(len(groups))
    held = round(config.pairing.holdout_fraction * len(groups))
    wanted = config.iterations
    if len(groups) - held < wanted or 0 < held < wanted:
        raise BadInput(
            f"{config.data.pairs} has {len(groups)} different prompts, {held} of them "
            f"held out: too few for {wanted} iterations; lower iterations or give more"
        )
    chunks: PairChunks = [[] for _ in range(wanted)]
    for is_held, part in ((False, order[held:]), (True, order[:held])):
        for chunk, places in zip(chunks, np.array_split(part, wanted)):
            chunk += [(is_held, row) for place in places for row in groups[place]]
    return chunks
