"""What every phase of a run shares."""

import pathlib
import signal
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import jax
from jax.sharding import Mesh

from tpmm_jax.axes import Params
from tpmm_jax.config import Config
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.records import PairRow
from tpmm_jax.errors import Stopped
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import MetricsLog
from tpmm_jax.loop.answers import PolicyRunner
from tpmm_jax.loop.prompts import PromptSchedule
from tpmm_jax.models import Decoder
from tpmm_jax.models.lora import merge_adapters
from tpmm_jax.rewards import Raters
from tpmm_jax.steps import Frozen
from tpmm_jax.store import Trajectory, WorkStore

# Folded into the random key, so that phases draw independently.
ROLLOUT, EVALUATION, DROPOUT = 0, 1, 2
# In the place of an iteration: the adapters that a run of LoRA begins with.
ADAPTERS = 2**31 - 1


# Kinds of metric and timing rows, in the order in which an iteration writes them.
KINDS = ("pairs", "merge", "reference", "train", "evaluation", "iteration")


class StopFlag:
    """Turns SIGTERM and Ctrl-C into a stop at the next safe place.

    A second signal acts at once.
    """

    def __init__(self) -> None:
        self.raised: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopFlag":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.raised = signal.Signals(number).name
        for n, handler in self._before.items():
            signal.signal(n, handler)

    def check(self) -> None:
        """Raises Stopped if a signal came."""
        if self.raised is not None:
            raise Stopped(f"stopped by {self.raised}")


@dataclass(frozen=True)
class Run:
    """One run: its configuration, models' architecture, stores and people's views.

    Attributes:
      workdir: everything the run writes lies here.
      decoder: the policy's architecture with training numerics.
      codec: how its texts become tokens; its digest is part of cache keys.
      pair_length, prompt_length: tokens that every pair and every prompt of the run
        is padded to, so that one program is compiled for all iterations.
      raters: scorers and judges; its scorer is None offline without one.
      schedule: prompts of each iteration and of the evaluation; None without.
      pair_chunks: offline pairs of each iteration, as (held out, row); None online.
    """

    config: Config
    workdir: pathlib.Path
    decoder: Decoder
    codec: TextCodec
    pair_length: int
    prompt_length: int
    trajectory: Trajectory
    work: WorkStore
    log: MetricsLog
    console: RunConsole
    raters: Raters = field(default_factory=Raters)
    schedule: PromptSchedule | None = None
    pair_chunks: list[list[tuple[bool, PairRow]]] | None = None
    stop: StopFlag = field(default_factory=StopFlag)

    @property
    def mesh(self) -> Mesh:
        assert self.decoder.mesh is not None
        return self.decoder.mesh

    @property
    def chunk_bytes(self) -> int:
        return self.config.model.logits_chunk_mib * 2**20

    @property
    def runner(self) -> PolicyRunner:
        """How the run's policies are sampled and evaluated."""
        rollout = self.config.rollout
        return PolicyRunner(
            decoder=self.decoder,
            codec=self.codec,
            sampling=rollout.sampling(),
            batch_size=rollout.batch_size,
            micro_batch=self.micro_batch,
            prompt_length=self.prompt_length,
            pair_length=self.pair_length,
            chunk_bytes=self.chunk_bytes,
            console=self.console,
            check=self.stop.check,
        )

    @property
    def micro_batch(self) -> int:
        """Pairs in one forward and backward pass."""
        return self.config.train.batch_size // self.config.train.accumulation

    def folder(self, iteration: int) -> pathlib.Path:
        """Returns the iteration's folder, made if missing."""
        folder = self.workdir / "iterations" / f"{iteration:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def policy(self, step: int) -> Params:
        """Returns theta_step from the trajectory, float32, on the mesh."""
        return self.trajectory.restore(step, self.decoder.abstract_params("float32"))

    def trained(self, step: int) -> Params:
        """Returns what training theta_{step + 1} begins with: theta_step, or adapters.

        LoRA: adapters that give theta_step, float32, on the mesh.
        """
        if self.decoder.lora is None:
            return self.policy(step)
        target = self.decoder.abstract_trained()
        return self.trajectory.restore_adapters(step, target)

    def frozen(self, iteration: int) -> Frozen | None:
        """Returns what an iteration's steps of LoRA read; None without it."""
        lora = self.decoder.lora
        if lora is None:
            return None
        key = self.key(iteration, DROPOUT) if lora.dropout else None
        return Frozen(self.trajectory.restore_base(), key)

    def dense(self, trained: Params, frozen: Frozen | None) -> Params:
        """Returns the policy that a training state's params stand for."""
        lora = self.decoder.lora
        if lora is None or frozen is None:
            return trained
        return merge_adapters(frozen.base, trained, lora)

    def rewind(self, kind: str, iteration: int, step: int = 0) -> None:
        """Drops metric rows from (kind, iteration, step) on: they come again."""
        place = (iteration, KINDS.index(kind), step)
        self.log.rewind(
            lambda row: (
                (row["iteration"], KINDS.index(row["kind"]), row.get("step", 0)) < place
            )
        )

    def key(self, iteration: int, purpose: int) -> jax.Array:
        """Returns the random key of an iteration's sampling."""
        key = jax.random.key(self.config.seed)
        return jax.random.fold_in(jax.random.fold_in(key, iteration), purpose)
