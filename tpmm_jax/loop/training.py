"""DPO from theta_{t-1} against the reference's log-probs; appends theta_t."""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.config import Config
from tpmm_jax.data.table import Table, take
from tpmm_jax.errors import BadInput
from tpmm_jax.loop.log_probs import pair_table, table_log_probs
from tpmm_jax.loop.rollouts import IterationPairs
from tpmm_jax.loop.run import DROPOUT, Disk, Plan
from tpmm_jax.loop.safety import (
    NOT_FINITE,
    refuse_log_probs,
    refuse_weights,
    stop_training,
)
from tpmm_jax.loop.voice import Voice
from tpmm_jax.losses import init_loss_state
from tpmm_jax.mesh import put_batch
from tpmm_jax.steps import (
    TrainState,
    abstract_state,
    init_state,
    make_learning_rate,
    preference_step,
)
from tpmm_jax.store.fingerprint import tree_digest

# bfloat16 peak of one device, FLOP/s (vendors' data sheets), by device_kind.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


@dataclass(frozen=True)
class Batches:
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
        rng = np.random.default_rng([self.seed, self.iteration, 2, epoch])
        first = batch * self.batch_size
        return rng.permutation(self.rows)[first : first + self.batch_size]


def check_tau(config: Config, steps: int, what: str) -> None:
    """Raises BadInput where trust_region would never move its reference."""
    tau = config.reference.trust_region_tau
    if config.reference.rule == "trust_region" and tau >= steps:
        raise BadInput(
            f"reference.trust_region_tau is {tau}, but {what} has {steps} optimizer "
            "steps: the reference would never move; use a smaller tau, a smaller "
            "train.batch_size or more prompts"
        )


def train(
    plan: Plan,
    disk: Disk,
    voice: Voice,
    iteration: int,
    pairs: IterationPairs,
    reference_logps_MN: np.ndarray | None,
) -> None:
    """Trains theta_t and appends it to the trajectory; continues where it stopped."""
    config = plan.config.train
    table = pair_table(plan.runner, pairs.train)
    if reference_logps_MN is not None:
        table["reference_BN"] = reference_logps_MN
    batches = Batches(
        len(pairs.train), config.batch_size, config.epochs, plan.config.seed, iteration
    )
    check_tau(plan.config, batches.steps, f"iteration {iteration}")
    step_fn = preference_step(
        plan.decoder, plan.config.loss, config, plan.runner.chunk_bytes
    )
    rate = make_learning_rate(config, batches.steps)
    tau = plan.config.reference.trust_region_tau
    alpha = plan.config.reference.trust_region_alpha
    state, reference = _start(plan, disk, iteration)
    frozen = disk.frozen(plan.key(iteration, DROPOUT))
    step = int(state.step)
    if reference is not None and step >= tau:
        _refresh(plan, voice, reference, table, pairs, batches, step // tau * tau)
    disk.rewind("train", iteration, step)

    def stop(failed: dict[str, Any]) -> None:
        # The failed step changed nothing, nor did the one that is under way since.
        stop_training(
            plan, disk, voice, iteration, pairs.train, table, state, failed, frozen
        )

    with voice.console.phase(
        f"iteration {iteration}: DPO", batches.steps, "steps"
    ) as bar:
        bar.advance(step)
        pending: dict[str, Any] | None = None
        started, counted = time.monotonic(), 0
        while step < batches.steps:
            places = batches.places(step)
            batch = put_batch(take(table, places, config.batch_size), plan.mesh)
            state, metrics = step_fn(state, batch, rate(step), frozen)
            # The last step's metrics: this step is already under way.
            _log_step(disk, iteration, pending, bar, stop)
            pending = {
                "step": step,
                "learning_rate": rate(step),
                "rows": places,
                **metrics,
            }
            step += 1
            counted += int(table["mask_BNT"][places].sum())
            if reference is not None and step % tau == 0:
                policy = plan.dense(state.params, frozen)
                reference = _move(reference, policy, jnp.float32(alpha))
                del policy
                pending["reference/digest"] = tree_digest(reference)
                if step < batches.steps:
                    _refresh(plan, voice, reference, table, pairs, batches, step)
            due = config.checkpoint_every and step % config.checkpoint_every == 0
            if (due and step < batches.steps) or voice.stop.raised:
                _log_step(disk, iteration, pending, bar, stop)
                pending = None
                _save(disk, iteration, state, reference)
                voice.stop.check()
        _log_step(disk, iteration, pending, bar, stop)
        _log_speed(plan, disk, iteration, counted, time.monotonic() - started)
    _finish(disk, iteration, state.params, plan.config.reference.rule)


def _finish(disk: Disk, iteration: int, params: Params, rule: str) -> None:
    disk.log.flush()
    refuse_weights(params, f"theta_{iteration}")
    meta = {"iteration": iteration, "rule": rule}
    disk.trajectory.append(iteration, params, meta)
    disk.work.clear()
    (disk.folder(iteration) / NOT_FINITE).unlink(missing_ok=True)


def _start(plan: Plan, disk: Disk, iteration: int) -> tuple[TrainState, Params | None]:
    """Returns the saved state of this iteration, or a fresh one from theta_{t-1}."""
    config = plan.config.train
    moving = plan.config.reference.rule == "trust_region"
    latest = disk.work.latest()
    if latest is not None:
        state = abstract_state(
            plan.decoder.abstract_trained(), config, init_loss_state(plan.config.loss)
        )
        target: dict[str, Any] = {"state": state}
        if moving:
            target["reference"] = plan.decoder.abstract_params("float32")
        saved, loop = disk.work.restore(latest, target)
        if loop["iteration"] == iteration:
            return saved["state"], saved.get("reference")
        del saved
        disk.work.clear()
    loss_state = init_loss_state(plan.config.loss, [plan.config.seed, iteration, 3])
    params = disk.trained(iteration - 1)
    state = init_state(params, config, loss_state)
    return state, disk.policy(iteration - 1) if moving else None


def _save(
    disk: Disk, iteration: int, state: TrainState, reference: Params | None
) -> None:
    saved: dict[str, Any] = {"state": state}
    if reference is not None:
        saved["reference"] = reference
    disk.log.flush()
    refuse_weights(state.params, f"iteration {iteration} after step {int(state.step)}")
    disk.work.save(int(state.step), saved, {"iteration": iteration})


@functools.partial(jax.jit, donate_argnums=0)
def _move(reference: Params, params: Params, alpha: jax.Array) -> Params:
    """theta_ref <- (1 - alpha) theta_ref + alpha theta (TR-DPO, 2404.09656)."""
    return jax.tree.map(lambda r, p: (1 - alpha) * r + alpha * p, reference, params)


def _refresh(
    plan: Plan,
    voice: Voice,
    reference: Params,
    table: Table,
    pairs: IterationPairs,
    batches: Batches,
    moved_at: int,
) -> None:
    """Recomputes reference_BN of the batches from step ``moved_at`` on."""
    coming = [batches.places(step) for step in range(moved_at, batches.steps)]
    places = np.unique(np.concatenate(coming))
    some = {name: x[places] for name, x in table.items()}
    title = f"iteration {batches.iteration}: moved reference log-probs"
    ld_alpha = plan.config.loss.ld_alpha
    logps = table_log_probs(plan.runner, voice, reference, some, title, ld_alpha)
    refuse_log_probs(logps, [pairs.train[place] for place in places], title)
    table["reference_BN"] = table["reference_BN"].copy()
    table["reference_BN"][places] = logps


def _log_step(
    disk: Disk,
    iteration: int,
    pending: dict[str, Any] | None,
    bar: Any,
    stop: Callable[[dict[str, Any]], None],
) -> None:
    if pending is None:
        return
    step, rows = pending.pop("step"), pending.pop("rows")
    values: dict[str, Any] = {
        k: v if isinstance(v, str) else float(v) for k, v in pending.items()
    }
    if not all(math.isfinite(v) for v in values.values() if isinstance(v, float)):
        stop({**values, "step": step, "rows": rows})
    disk.log.log("train", iteration=iteration, step=step, values=values)
    bar.advance(
        1, loss=f"{values['loss']:.4f}", margin=f"{values['rewards/margins']:+.3f}"
    )


def _log_speed(
    plan: Plan, disk: Disk, iteration: int, tokens: int, seconds: float
) -> None:
    if tokens == 0:
        return
    values = {"seconds": seconds, "tokens_per_second": tokens / seconds}
    devices = plan.mesh.devices
    kind = devices.flat[0].device_kind
    peak = next((v for k, v in PEAK_FLOPS.items() if kind.startswith(k)), None)
    if peak is not None:
        # FLOP a parameter and token: 2 forward, 2 for the gradient of what enters, 2
        # for that of the weight, which LoRA leaves out; remat is not counted.
        per_token = 6 if plan.decoder.lora is None else 4
        flops = per_token * plan.decoder.num_params * tokens
        values["mfu"] = flops / seconds / (peak * devices.size)
    disk.log.log_timing("train", iteration=iteration, step=None, values=values)
