"""What the phases of a run share: its plan, its disk and its voice.

A phase takes those of the three that it touches.
"""

import contextlib
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tpmm_jax.axes import Params
from tpmm_jax.config import Config
from tpmm_jax.log.metrics import KINDS, METRICS, MetricsLog
from tpmm_jax.loop.answers import PolicyRunner
from tpmm_jax.loop.chunks import PairChunks
from tpmm_jax.loop.prompts import PromptSchedule
from tpmm_jax.loop.voice import Voice
from tpmm_jax.merging import merge_parts
from tpmm_jax.models import NO_NOISE, Decoder
from tpmm_jax.models.lora import merge_adapters
from tpmm_jax.rewards import Raters
from tpmm_jax.steps import Frozen
from tpmm_jax.store import Trajectory, WorkStore
from tpmm_jax.store.digests import is_finished, lost_files

# Folded into the random key, so that phases draw independently.
ROLLOUT, EVALUATION, DROPOUT, SHIPPING = 0, 1, 2, 3
# In the place of an iteration: the adapters that a run of LoRA begins with.
ADAPTERS = 2**31 - 1


@dataclass(frozen=True)
class Plan:
    """What is to be done, fixed for the run.

    Attributes:
      runner: how its policies are sampled and evaluated. Every pair and every prompt of
        the run is padded to its lengths, so that one program is compiled for all
        iterations.
      raters: scorers and judges; its scorer is None offline without one.
      schedule: prompts of each iteration and of the evaluation; None without.
      pair_chunks: offline pairs of each iteration, as (held out, row); None online.
    """

    config: Config
    runner: PolicyRunner
    raters: Raters = field(default_factory=Raters)
    schedule: PromptSchedule | None = None
    pair_chunks: PairChunks | None = None

    @property
    def decoder(self) -> Decoder:
        """The policy's architecture with training numerics."""
        return self.runner.decoder

    @property
    def mesh(self) -> Mesh:
        assert self.decoder.mesh is not None
        return self.decoder.mesh

    def key(self, iteration: int, purpose: int) -> jax.Array:
        """Returns the random key of an iteration's sampling."""
        key = jax.random.key(self.config.seed)
        return jax.random.fold_in(jax.random.fold_in(key, iteration), purpose)

    def dense(self, trained: Params, frozen: Frozen | None) -> Params:
        """Returns the policy that a training state's params stand for."""
        lora = self.decoder.lora
        if lora is None or frozen is None:
            return trained
        return merge_adapters(frozen.base, trained, lora)


@dataclass(frozen=True)
class Disk:
    """What a run keeps.

    Attributes:
      workdir: everything the run writes lies here.
      decoder: says what is stored: its parameters, or LoRA's adapters.
    """

    workdir: pathlib.Path
    trajectory: Trajectory
    work: WorkStore
    log: MetricsLog
    decoder: Decoder

    def folder(self, iteration: int) -> pathlib.Path:
        """Returns the iteration's folder, made if missing."""
        folder = self.workdir / "iterations" / f"{iteration:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def next_iteration(self, last: int) -> int:
        """Returns the first one without policy, summary or metrics; or last + 1."""
        there = self.trajectory.steps()
        for t in range(last + 1):
            if t not in there or not self.is_evaluated(t):
                return t
        return last + 1

    def is_evaluated(self, iteration: int) -> bool:
        """Whether an iteration's last files are there, and no other is gone."""
        folder, last = self.folder(iteration), ("summary.json", METRICS)
        finished = all(is_finished(folder / name) for name in last)
        return finished and not self.lost(iteration)

    def lost(self, iteration: int) -> list[str]:
        """Returns the files of an iteration that went missing: they are made again."""
        return lost_files(self.folder(iteration))

    def policy(self, step: int) -> Params:
        """Returns theta_step from the trajectory, float32, on the mesh."""
        return self.trajectory.restore(step, self.decoder.abstract_params("float32"))

    def merge(self, weights_GK: np.ndarray, names: Sequence[str]) -> Params:
        """Returns the weighted sum of theta_0, theta_1, ..., float32, on the mesh.

        Args:
          names: of the groups of weights.
        """
        lora, trajectory = self.decoder.lora, self.trajectory
        base = None if lora is None else trajectory.restore_base()

        def read(k: int, part: Params, first: Params | None) -> Params:
            return trajectory.restore_part(k, part, base or first)

        target = self.decoder.abstract_params("float32")
        return merge_parts(read, target, weights_GK, names)

    def trained(self, step: int) -> Params:
        """Returns what training theta_{step + 1} begins with: theta_step, or adapters.

        LoRA: adapters that give theta_step, float32, on the mesh.
        """
        if self.decoder.lora is None:
            return self.policy(step)
        target = self.decoder.abstract_trained()
        return self.trajectory.restore_adapters(step, target)

    def frozen(self, dropout_key: jax.Array) -> Frozen | None:
        """Returns what steps read beside what they train; None: nothing."""
        lora, noise = self.decoder.lora, self.decoder.noise
        drawn = noise != NO_NOISE or (lora is not None and lora.dropout > 0)
        key = dropout_key if drawn else None
        if lora is None:
            return None if key is None else Frozen({}, key)
        return Frozen(self.trajectory.restore_base(), key)

    @contextlib.contextmanager
    def timed(self, kind: str, iteration: int) -> Iterator[None]:
        """Logs the seconds of a phase that comes to its end."""
        started = time.monotonic()
        yield
        self.log_seconds(kind, iteration, time.monotonic() - started)

    def log_seconds(self, kind: str, iteration: int, seconds: float) -> None:
        """Writes a row of timing.jsonl."""
        values = {"seconds": seconds}
        self.log.log_timing(kind, iteration=iteration, step=None, values=values)

    def rewind(self, kind: str, iteration: int, step: int = 0) -> None:
        """Drops an iteration's metric rows from (kind, step) on: they come again.

        Once its policy is stored, only those of this kind: a file that went missing is
        made again, and what came after it stays.
        """
        place, stored = (KINDS.index(kind), step), iteration in self.trajectory.steps()

        def keep(row: Mapping[str, Any]) -> bool:
            earlier = (KINDS.index(row["kind"]), row.get("step", 0)) < place
            return earlier or (stored and row["kind"] != kind)

        # What comes again after the policy was stored took the time that it took.
        again = kind != "iteration" and not stored
        self.log.rewind(iteration, keep, timing=again)


@dataclass(frozen=True)
class Run:
    """An open run, for who hands its parts to the phases."""

    plan: Plan
    disk: Disk
    voice: Voice
