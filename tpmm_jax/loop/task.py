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


@dataclass(frozen=True)
class BatchOrder:
    """Which rows each step of an iteration takes."""

    rows: int
    batch_size: int
    epochs: int
    seed: int
    iteration: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def places(self, step: int) -> np.ndarray:
        """Returns the rows of a step; the last of an epoch may be short."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        first = batch * self.batch_size
        shuffled = _shuffle(self.rows, self.seed, self.iteration, epoch)
        return shuffled[first : first + self.batch_size]


@functools.lru_cache(maxsize=1)
def _shuffle(rows: int, seed: int, iteration: int, epoch: int) -> np.ndarray:
    """Returns an epoch's order of rows; drawn once, not for each of its steps."""
    return np.random.default_rng([seed, iteration, 2, epoch]).permutation(rows)


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
        rows = take(self.table, self.order.places(step), size)
        return put_batch(rows, self.plan.mesh)
