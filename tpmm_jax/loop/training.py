"""DPO from theta_{t-1} against the reference's log-probs; appends theta_t."""

import dataclasses
import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.chips import find_chip
from tpmm_jax.config import Config
from tpmm_jax.data.table import fitting_lengths, row_lengths
from tpmm_jax.errors import BadInput
from tpmm_jax.loop.agreement import agreement, pair_weights
from tpmm_jax.loop.log_probs import pair_table, table_log_probs
from tpmm_jax.loop.reference import open_reference
from tpmm_jax.loop.rollouts import IterationPairs
from tpmm_jax.loop.run import DROPOUT, Disk, Plan
from tpmm_jax.loop.safety import (
    NOT_FINITE,
    refuse_log_probs,
    refuse_weights,
    stop_training,
)
from tpmm_jax.loop.task import BatchOrder, Task
from tpmm_jax.loop.voice import Voice
from tpmm_jax.losses import Batch, Metrics, init_loss_state
from tpmm_jax.steps import (
    Frozen,
    TrainState,
    abstract_state,
    fit,
    init_state,
    make_learning_rate,
    preference_step,
)
from tpmm_jax.steps.flops import count_flops
from tpmm_jax.store.digests import remove_listed
from tpmm_jax.store.fingerprint import tree_digest


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
    reference_logps_PN: np.ndarray | None,
) -> None:
    """Trains theta_t and appends it to the trajectory; continues where it stopped."""
    config, rows = plan.config.train, pairs.train
    table = pair_table(plan.runner, rows)
    if reference_logps_PN is not None:
        table["reference_BN"] = reference_logps_PN
    if plan.config.loss.needs_margins:
        table["margin_B"] = np.asarray([row.margin for row in rows], np.float32)
    if plan.config.pairing.weights == "agreement" and iteration > 1:
        share_P = agreement(plan, disk, voice, iteration, pairs)
        table["trust_B"] = pair_weights(share_P, iteration - 1)
    grouped = len(plan.runner.pair_lengths) > 1 and not plan.config.loss.sees_batch
    order = BatchOrder(
        len(rows), config.batch_size, config.epochs, plan.config.seed, iteration,
        row_lengths(table) if grouped else None,
    )  # fmt: skip
    check_tau(plan.config, order.steps, f"iteration {iteration}")
    rate = make_learning_rate(config, order.steps)
    state, reference = _start(plan, disk, voice, iteration)
    frozen, first = disk.frozen(plan.key(iteration, DROPOUT)), int(state.step)
    disk.rewind("train", iteration, first)
    title = f"iteration {iteration}: DPO"
    if first:
        voice.console.note(f"{title} continues after step {first}")
    with voice.console.phase(title, order.steps, "steps") as bar:
        bar.advance(first)
        task = Task(plan, disk, voice, iteration, rows, table, order, rate, frozen, bar)
        started = time.monotonic()
        state = _fit(task, state, reference)
        _log_speed(task, first, time.monotonic() - started)
    _finish(task, state.params)


def _start(
    plan: Plan, disk: Disk, voice: Voice, iteration: int
) -> tuple[TrainState, Params | None]:
    """Returns the saved state of this iteration, or a fresh one."""
    config = plan.config.train
    moving = plan.config.reference.rule == "trust_region"
    latest = disk.work.latest()
    if latest is not None:
        state = abstract_state(
            plan.decoder.abstract_trained(), config, init_loss_state(plan.config.loss)
        )
        reference = plan.decoder.abstract_params("float32") if moving else None
        target = {"state": state, "reference": reference}
        saved, loop = disk.work.restore(latest, target)
        if loop["iteration"] == iteration:
            return saved["state"], saved["reference"]
        del saved
        disk.work.clear()
    loss_state = init_loss_state(plan.config.loss, [plan.config.seed, iteration, 3])
    if plan.config.train_from == "reference":
        [(_, merged)] = open_reference(plan, disk, voice, iteration).members
        params = merged()
    else:
        params = disk.trained(start_step(plan.config, iteration))
    state = init_state(params, config, loss_state)
    return state, disk.policy(iteration - 1) if moving else None


def start_step(config: Config, iteration: int) -> int:
    """Returns the policy at which an iteration's training begins, if at one."""
    return 0 if config.train_from == "theta_0" else iteration - 1


def _fit(task: Task, state: TrainState, reference: Params | None) -> TrainState:
    """Trains on the iteration's pairs.

    With trust_region in segments of tau steps; after each of them the reference moves.
    """
    every, steps = task.plan.config.train.checkpoint_every, task.order.steps
    moving = reference is not None
    tau = task.plan.config.reference.trust_region_tau if moving else steps
    step = int(state.step)
    while step < steps:
        if reference is not None and step >= tau:
            _refresh(task, reference, step // tau * tau)
        step = min((step // tau + 1) * tau, steps)
        state, reference = _fit_segment(task, state, reference, step)
        due = task.voice.stop.raised or (every and step % every == 0)
        if due and step < steps:
            _save(task, state, reference)
    return state


def _fit_segment(
    task: Task, state: TrainState, reference: Params | None, end: int
) -> tuple[TrainState, Params | None]:
    """Returns the state at step ``end``, and the reference, moved where it is due."""
    plan, train = task.plan, task.plan.config.train
    config, moving = plan.config.reference, reference is not None
    held: list[tuple[int, Metrics]] = []

    def log(state: TrainState, step: int, metrics: Metrics) -> None:
        # The row of the step before a move waits for the moved reference's digest.
        if moving and (step + 1) % config.trust_region_tau == 0:
            held.append((step, metrics))
        else:
            _log(task, state, step, metrics)

    step_fn = preference_step(plan.decoder, plan.config.loss, train)
    state = fit(
        state,
        functools.partial(step_fn, frozen=task.frozen),
        task.batch,
        end,
        learning_rate=task.learning_rate,
        log=log,
        save=functools.partial(_save, task, reference=reference),
        save_every=train.checkpoint_every,
        stop=lambda: task.voice.stop.raised is not None,
    )
    for step, metrics in held:
        policy = plan.dense(state.params, task.frozen)
        reference = _move(reference, policy, jnp.float32(config.trust_region_alpha))
        del policy
        moved = {"reference/digest": tree_digest(reference)}
        _log(task, state, step, metrics, **moved)
    return state, reference


@functools.partial(jax.jit, donate_argnums=0)
def _move(reference: Params, params: Params, alpha: jax.Array) -> Params:
    """theta_ref <- (1 - alpha) theta_ref + alpha theta (TR-DPO, 2404.09656)."""
    return jax.tree.map(lambda r, p: (1 - alpha) * r + alpha * p, reference, params)


def _refresh(task: Task, reference: Params, moved_at: int) -> None:
    """Recomputes reference_BN of the batches from step ``moved_at`` on."""
    plan, table, order = task.plan, task.table, task.order
    coming = [order.places(step) for step in range(moved_at, order.steps)]
    places = np.unique(np.concatenate(coming))
    some = {name: x[places] for name, x in table.items()}
    title = f"iteration {task.iteration}: moved reference log-probs"
    ld_alpha = plan.config.loss.ld_alpha
    logps = table_log_probs(plan.runner, task.voice, reference, some, title, ld_alpha)
    refuse_log_probs(logps, [task.rows[place] for place in places], title)
    table["reference_BN"] = table["reference_BN"].copy()
    table["reference_BN"][places] = logps


def _log(
    task: Task, state: TrainState, step: int, metrics: Metrics, **texts: str
) -> None:
    """Writes a step's metric row; raises NotFinite where one is not finite."""
    metrics = {"learning_rate": task.learning_rate(step), **metrics}
    values = {name: float(value) for name, value in metrics.items()}
    if not all(map(math.isfinite, values.values())):
        stop_training(task, state, step, values)
    task.disk.log.log(
        "train", iteration=task.iteration, step=step, values={**values, **texts}
    )
    task.bar.advance(
        1, loss=f"{values['loss']:.4f}", margin=f"{values['rewards/margins']:+.3f}"
    )


def _save(task: Task, state: TrainState, reference: Params | None) -> None:
    """Writes a work checkpoint; raises Stopped where a signal came."""
    disk, step = task.disk, int(state.step)
    disk.log.flush()
    refuse_weights(state.params, f"iteration {task.iteration} after step {step}")
    saved = {"state": state, "reference": reference}
    disk.work.save(step, saved, {"iteration": task.iteration})
    task.voice.stop.check()


def _finish(task: Task, params: Params) -> None:
    disk, iteration = task.disk, task.iteration
    disk.log.flush()
    refuse_weights(params, f"theta_{iteration}")
    meta = {"iteration": iteration, "rule": task.plan.config.reference.rule}
    with disk.timed("save", iteration):
        # One save at a time: Orbax's barriers between processes have one name.
        disk.work.wait()
        disk.trajectory.append(iteration, params, meta)
    disk.work.clear()
    remove_listed(disk.folder(iteration) / NOT_FINITE)


def step_flops(plan: Plan, batch: Batch, frozen: Frozen | None) -> float:
    """Returns the operations of a training step; what remat repeats is not counted.

    Padding is: it is computed.
    """
    config = plan.config
    decoder = dataclasses.replace(plan.decoder, remat=False, attention="xla")
    state = abstract_state(
        decoder.abstract_trained(), config.train, init_loss_state(config.loss)
    )
    step = preference_step(decoder, config.loss, config.train)
    return count_flops(
        lambda state, batch, frozen: step(state, batch, 0.0, frozen=frozen),
        *(state, batch, frozen),
    )


def _by_length(task: Task, steps: range) -> list[tuple[int, int]]:
    """Returns of each length that steps are padded to one of them, and their number."""
    length_P = row_lengths(task.table)
    longest = [length_P[task.order.places(step)].max() for step in steps]
    lengths = fitting_lengths(np.asarray(longest), task.plan.runner.pair_lengths)
    _, firsts, counts = np.unique(lengths, return_index=True, return_counts=True)
    return [(steps[i], int(count)) for i, count in zip(firsts, counts)]


def _log_speed(task: Task, first: int, seconds: float) -> None:
    """Writes the tokens per second of the steps from ``first`` on."""
    plan, order, mask_BNT = task.plan, task.order, task.table["mask_BNT"]
    steps = range(first, order.steps)
    tokens = sum(int(mask_BNT[order.places(step)].sum()) for step in steps)
    if tokens == 0:
        return
    values = {"seconds": seconds, "tokens_per_second": tokens / seconds}
    devices = plan.mesh.devices
    chip = find_chip(devices.flat[0].device_kind)
    if chip is not None:
        flops = sum(
            count * step_flops(plan, task.batch(step), task.frozen)
            for step, count in _by_length(task, steps)
        )
        peak = chip.peak(plan.decoder.compute_dtype) * devices.size
        values["mfu"] = flops / seconds / peak
    task.disk.log.log_timing(
        "train", iteration=task.iteration, step=None, values=values
    )
