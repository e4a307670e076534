"""Bradley-Terry steps from the start on; each improvement is kept as a further step."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from tpmm_jax.config import HELD_OUT
from tpmm_jax.data.table import take
from tpmm_jax.hosts import once
from tpmm_jax.log.console import Phase
from tpmm_jax.log.metrics import HELD_OUT_KIND, read_metrics
from tpmm_jax.loop.run import Disk
from tpmm_jax.loop.safety import refuse_step, refuse_weights
from tpmm_jax.loop.voice import Voice
from tpmm_jax.losses import Batch, Metrics
from tpmm_jax.mesh import fetch, put_batch
from tpmm_jax.models import Adapted
from tpmm_jax.reward_runs.measuring import as_row, measure_sets, rewards_of
from tpmm_jax.reward_runs.plan import ITERATION, RewardPlan
from tpmm_jax.reward_runs.routers import (
    Routing,
    Start,
    as_scalars,
    describe,
    read_start,
)
from tpmm_jax.steps import (
    Frozen,
    TrainState,
    abstract_state,
    fit,
    init_state,
    make_learning_rate,
    pair_rewards_step,
    reward_gradient_norm_step,
    reward_step,
)


@dataclass(frozen=True)
class Progress:
    """What the held-out pairs have said so far.

    Attributes:
      best: the lowest loss, nats.
      since: evaluations since then.
    """

    best: float = math.inf
    since: int = 0

    def after(self, loss: float) -> "Progress":
        better = loss < self.best
        return Progress(min(loss, self.best), 0 if better else self.since + 1)


@dataclass(frozen=True)
class _Task:
    """What the steps share.

    Attributes:
      start: of a mixture: what its experts began as.
    """

    plan: RewardPlan
    disk: Disk
    voice: Voice
    learning_rate: Callable[[int], Any]
    frozen: Frozen | None
    start: Start | None
    bar: Phase

    def batch(self, step: int) -> Batch:
        """Returns a step's pairs, on the devices."""
        places = self.plan.order.places(step)
        size = self.plan.config.train.filled(self.plan.mesh)
        rows = take(self.plan.table, places, size, self.plan.lengths)
        return put_batch(rows, self.plan.mesh)


def train(plan: RewardPlan, disk: Disk, voice: Voice) -> None:
    """Trains to the last step or an early end; continues where it stopped."""
    steps, config = plan.order.steps, plan.config.train
    # Before the state: the whole start is in memory while it is read.
    start = read_start(plan, disk)
    state, progress = _start(plan, disk)
    first = int(state.step)
    _rewind(disk, first)
    frozen = disk.frozen(plan.dropout_key)
    rate = make_learning_rate(config, steps)
    if first:
        voice.console.note(f"Bradley-Terry continues after step {first}")
    with voice.console.phase("Bradley-Terry", steps, "steps") as bar:
        bar.advance(first)
        task = _Task(plan, disk, voice, rate, frozen, start, bar)
        started = time.monotonic()
        if first == 0:
            progress = _evaluate(task, state, progress)
        state, progress = _fit(task, state, progress)
        _log_speed(task, range(first, int(state.step)), time.monotonic() - started)
    if (done := int(state.step)) < steps:
        voice.console.note(
            f"ended early, after {done} of {steps} steps: {progress.since} evaluations "
            "without a lower held-out loss (evaluation.patience)"
        )


def is_trained(plan: RewardPlan, disk: Disk) -> bool:
    """Whether the rows say that training came to its end; a saved state goes on."""
    if disk.work.latest() is not None:
        return False
    progress, step = Progress(), -1
    for row in read_metrics(disk.workdir):
        if row["kind"] == HELD_OUT_KIND:
            progress, step = progress.after(row[f"{HELD_OUT}/loss"]), row["step"]
    return step >= plan.order.steps or progress.since >= _patience(plan)


def _patience(plan: RewardPlan) -> float:
    patience = plan.config.evaluation.patience
    return math.inf if patience is None else patience


def _start(plan: RewardPlan, disk: Disk) -> tuple[TrainState, Progress]:
    """Returns the saved state with what was measured, or a fresh one."""
    config, latest = plan.config.train, disk.work.latest()
    if latest is not None:
        target = {"state": abstract_state(plan.decoder.abstract_trained(), config)}
        saved, loop = disk.work.restore(latest, target)
        return saved["state"], Progress(**loop["progress"])
    return init_state(disk.trained(0), config), Progress()


def _rewind(disk: Disk, step: int) -> None:
    """Drops the rows of what comes again: all from a step on."""

    def keep(row: dict[str, Any]) -> bool:
        at = row.get("step", math.inf)
        return at < step or (row["kind"] == HELD_OUT_KIND and at == step > 0)

    disk.log.rewind(ITERATION, keep)


def _fit(
    task: _Task, state: TrainState, progress: Progress
) -> tuple[TrainState, Progress]:
    """Trains from one evaluation to the next."""
    train, settings = task.plan.config.train, task.plan.config.evaluation
    steps, step = task.plan.order.steps, int(state.step)
    step_fn = reward_step(task.plan.decoder, task.plan.config.loss, train)
    patience = _patience(task.plan)
    while step < steps and progress.since < patience:
        step = min((step // settings.every + 1) * settings.every, steps)
        state = fit(
            state,
            functools.partial(step_fn, frozen=task.frozen),
            task.batch,
            step,
            learning_rate=task.learning_rate,
            log=functools.partial(_log, task),
            save=functools.partial(_save, task, progress),
            save_every=train.checkpoint_every,
            stop=lambda: task.voice.stop.raised is not None,
        )
        progress = _evaluate(task, state, progress)
        ended = step == steps or progress.since >= patience
        every = train.checkpoint_every
        if ended or task.voice.stop.raised or (every and step % every == 0):
            _save(task, progress, state)
    return state, progress


def _evaluate(task: _Task, state: TrainState, progress: Progress) -> Progress:
    """Measures all test sets, writes their row, keeps the model if it is the best."""
    plan, disk, step = task.plan, task.disk, int(state.step)
    params: Any = state.params
    if task.frozen is not None and task.frozen.base:
        params = Adapted(task.frozen.base, state.params)
    title = f"measure step {step}"
    routing = None if task.start is None else Routing()
    # Not a phase that a signal ends: the state is saved right behind it.
    with task.voice.console.phase(title, plan.tested, "answers") as bar:
        rewards = rewards_of(plan, params, bar.advance, title, routing)
        # One machine may round otherwise than another: process 0's count.
        measures = once(lambda: measure_sets(plan, rewards), "measures")
        held = measures[HELD_OUT]
        bar.advance(0, accuracy=f"{held['accuracy']:.0%}", loss=f"{held['loss']:.4f}")
    kept = [disk.trajectory.meta(k).get("step", 0) for k in disk.trajectory.steps()]
    # After a kill steps are repeated, and what was kept of them is there already.
    if step > max(kept) and held["loss"] < progress.best:
        refuse_weights(state.params, f"the reward model after step {step}")
        meta = {"step": step, "loss": held["loss"], "accuracy": held["accuracy"]}
        # One save at a time: Orbax's barriers between processes have one name.
        disk.work.wait()
        disk.trajectory.append(len(kept), state.params, meta)
    values = as_row(measures)
    if task.start is not None and routing is not None:
        values |= as_scalars(describe(plan.decoder.config, params, routing, task.start))
    disk.log.log(HELD_OUT_KIND, iteration=ITERATION, step=step, values=values)
    return progress.after(held["loss"])


def _log(task: _Task, state: TrainState, step: int, metrics: Metrics) -> None:
    """Writes a step's metric row; raises NotFinite where one is not finite."""
    metrics = {"learning_rate": task.learning_rate(step), **metrics}
    values = {name: float(value) for name, value in metrics.items()}
    if not all(map(math.isfinite, values.values())):
        _refuse(task, state, step, values)
    task.disk.log.log("train", iteration=ITERATION, step=step, values=values)
    task.bar.advance(
        1, loss=f"{values['loss']:.4f}", accuracy=f"{values['accuracy']:.0%}"
    )


def _refuse(
    task: _Task, state: TrainState, step: int, metrics: dict[str, float]
) -> NoReturn:
    """Raises NotFinite, naming the pairs of a step that are not finite alone."""
    plan, config = task.plan, task.plan.config.train
    state = state._replace(step=np.int32(step))
    norm_of = reward_gradient_norm_step(plan.decoder, plan.config.loss, config)
    places, found = plan.order.places(step), dict[int, str]()
    params: Any = state.params
    if task.frozen is not None and task.frozen.base:
        params = Adapted(task.frozen.base, state.params)
    for place in map(int, places):
        row = take(plan.table, np.array([place]), config.filled(plan.mesh))
        batch = put_batch(row, plan.mesh)
        found_BN = fetch(pair_rewards_step(plan.decoder, params, batch))
        if not np.isfinite(found_BN).all():
            found[place] = "its rewards"
        elif not np.isfinite(norm_of(state, batch, task.frozen)):
            found[place] = "its gradient"
    rows = {int(place): plan.sets.train[place].origin for place in places}
    refuse_step(task.disk, ITERATION, step, metrics, rows, found)


def _save(task: _Task, progress: Progress, state: TrainState) -> None:
    """Writes a work checkpoint; raises Stopped where a signal came."""
    disk, step = task.disk, int(state.step)
    disk.log.flush()
    refuse_weights(state.params, f"the reward model after step {step}")
    loop = {"iteration": ITERATION, "progress": dataclasses.asdict(progress)}
    disk.work.save(step, {"state": state}, loop)
    task.voice.stop.check()


def _log_speed(task: _Task, steps: range, seconds: float) -> None:
    """Writes the tokens per second of steps, evaluations between them included."""
    mask_BNT, order = task.plan.table["mask_BNT"], task.plan.order
    tokens = sum(int(mask_BNT[order.places(step)].sum()) for step in steps)
    if tokens:
        values = {"seconds": seconds, "tokens_per_second": tokens / seconds}
        task.disk.log.log_timing("train", iteration=ITERATION, step=None, values=values)
