"""Offline: a preference set as chunks, one an iteration."""

from typing import TypeAlias

import numpy as np

from tpmm_jax.config import Config
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.prepare import group_by_prompt, load_rows
from tpmm_jax.data.records import PairRow
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole

PairChunks: TypeAlias = list[list[tuple[bool, PairRow]]]


def load_chunks(config: Config, codec: TextCodec, console: RunConsole) -> PairChunks:
    """Returns T chunks of the pair set; whole prompts are held out.

    Raises:
      BadInput: rows that are to be refused, all of them listed, or too few are left.
    """
    source = config.data.pairs
    assert source is not None
    rows = load_rows(source, config.data, codec, note=console.note, warn=console.warn)
    return split_chunks(config, rows)


def split_chunks(config: Config, rows: list[PairRow]) -> PairChunks:
    """Returns T chunks. A prompt is in one chunk, and held out there or not.

    Raises:
      BadInput: too few pairs or prompts.
    """
    if len(rows) < config.iterations:
        raise BadInput(
            f"{config.data.pairs} has {len(rows)} usable pairs for {config.iterations} "
            "iterations; lower iterations or give more pairs"
        )
    groups = group_by_prompt(rows)
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
