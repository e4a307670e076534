"""What the parts of a reward run share."""

import functools
from dataclasses import dataclass, field

import jax
from jax.sharding import Mesh

from tpmm_jax.config import RewardConfig
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.table import Table, row_lengths
from tpmm_jax.loop.run import DROPOUT, Disk
from tpmm_jax.loop.task import BatchOrder
from tpmm_jax.loop.voice import Voice
from tpmm_jax.models import Decoder
from tpmm_jax.reward_runs.sets import PairSets

# A reward run is one iteration; its rows and files bear this number.
ITERATION = 1
# The folder of its models.
KEPT = "reward"
# The folder of the dense models that a mixture is merged into.
MERGED = "merged"


@dataclass(frozen=True)
class RewardPlan:
    """What is to be done, fixed for the run.

    Attributes:
      decoder: the reward model's architecture with training numerics.
      table: arrays of the pairs that train.
      lengths: tokens that they are padded to, ascending: to the least that holds a
        batch.
    """

    config: RewardConfig
    decoder: Decoder
    codec: TextCodec
    sets: PairSets
    table: Table = field(repr=False)
    lengths: tuple[int, ...]

    @property
    def mesh(self) -> Mesh:
        assert self.decoder.mesh is not None
        return self.decoder.mesh

    @functools.cached_property
    def order(self) -> BatchOrder:
        """Which pairs each step takes."""
        train = self.config.train
        return BatchOrder(
            len(self.sets.train),
            train.batch_size,
            train.epochs,
            order_seed(self.config),
            ITERATION,
            row_lengths(self.table) if len(self.lengths) > 1 else None,
        )

    @property
    def tested(self) -> int:
        """Answers of all test sets, two a pair."""
        return 2 * sum(map(len, self.sets.tests.values()))

    @property
    def dropout_key(self) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(order_seed(self.config)), ITERATION)
        return jax.random.fold_in(key, DROPOUT)


def order_seed(config: RewardConfig) -> int:
    """Returns the seed of the order in which the pairs train."""
    return config.seed if config.order_seed is None else config.order_seed


@dataclass(frozen=True)
class RewardRun:
    """An open run."""

    plan: RewardPlan
    disk: Disk
    voice: Voice
