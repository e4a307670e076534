"""Offline: a preference set as chunks, one an iteration."""

from typing import TypeAlias

import numpy as np

from tpmm_jax.config import Config
from tpmm_jax.data.prepare import group_by_prompt
from tpmm_jax.data.records import PairRow
from tpmm_jax.errors import BadInput

PairChunks: TypeAlias = list[list[tuple[bool, PairRow]]]


def split_chunks(config: Config, rows: list[PairRow]) -> PairChunks:
    """Returns T chunks of the pair set. A prompt is in one, and held out there or not.

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
