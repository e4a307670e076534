"""What the training steps of one iteration share."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpmm_jax.data.records import PairRow
from tpmm_jax.data.table import Table, take
from tpmm_jax.log.console import Phase
from tpmm_jax.loop.run import Disk, Plan
from tpmm_jax.loop.voice import Voice
from tpmm_jax.losses import Batch
from tpmm_jax.mesh import put_batch
from tpmm_jax.steps import Frozen

# Batches among which rows are grouped by length.
WINDOW = 50


@dataclass(frozen=True, eq=False)
class BatchOrder:
    """Which rows each step of an iteration takes.

    Attributes:
      length_P: of the rows, tokens. Of each WINDOW batches of the shuffled rows those
        of like length share a batch, and the batches are shuffled again, but for the
        longest, which comes first. None: rows are shuffled, and no more.
    """

    rows: int
    batch_size: int
    epochs: int
    seed: int
    iteration: int
    length_P: np.ndarray | None = None

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def places(self, step: int) -> np.ndarray:
        """Returns the rows of a step; the last of an epoch may be short."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return _batches(self, epoch)[batch]


@functools.lru_cache(maxsize=1)
def _batches(order: BatchOrder, epoch: int) -> list[np.ndarray]:
    """Returns an epoch's batches; drawn once, not for each of its steps."""
    rng = np.random.default_rng([order.seed, order.iteration, 2, epoch])
    shuffled, size = rng.permutation(order.rows), order.batch_size
    if order.length_P is None:
        return _cut(shuffled, size)
    length_P, batches = order.length_P, list[np.ndarray]()
    for some in _cut(shuffled, WINDOW * size):
        # The short batch is of any rows: sorted, it would always be the longest.
        full = some[: len(some) // size * size]
        window = _cut(full[np.argsort(length_P[full], kind="stable")], size)
        batches += [window[i] for i in rng.permutation(len(window))]
        batches += _cut(some[len(full) :], size)
    full_ones = len(batches) - (order.rows % size > 0)
    if epoch == 0 and full_ones:
        # What does not fit into memory fails at once.
        longest = max(range(full_ones), key=lambda i: length_P[batches[i]].max())
        batches.insert(0, batches.pop(longest))
    return batches


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@dataclass(frozen=True)
class Task:
    """One iteration's training.

    Attributes:
      rows, table: its training pairs, and their arrays.
      learning_rate: step -> rate.
      frozen: of LoRA.
      bar: shows progress.
    """

    plan: Plan
    disk: Disk
    voice: Voice
    iteration: int
    rows: Sequence[PairRow]
    table: Table
    order: BatchOrder
    learning_rate: Callable[[int], Any]
    frozen: Frozen | None
    bar: Phase

    def batch(self, step: int) -> Batch:
        """Returns a step's pairs, on the devices."""
        size = self.plan.config.train.filled(self.plan.mesh)
        lengths = self.plan.runner.pair_lengths
        rows = take(self.table, self.order.places(step), size, lengths)
        return put_batch(rows, self.plan.mesh)
