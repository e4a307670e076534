"""The training routine: policies, pretraining and reward models all run through it."""

from collections.abc import Callable
from typing import Any

from tpmm_jax.losses import Batch, Metrics
from tpmm_jax.steps.state import TrainState


def fit(
    state: TrainState,
    step_fn: Callable[[TrainState, Batch, Any], tuple[TrainState, Metrics]],
    batches: Callable[[int], Batch],
    steps: int,
    *,
    learning_rate: Callable[[int], Any],
    log: Callable[[TrainState, int, Metrics], None],
    save: Callable[[TrainState], None] | None = None,
    save_every: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Trains from ``state.step`` to ``steps``, in an order that is never rearranged.

    Args:
      state: is consumed; a state that was saved continues where it stood.
      step_fn: from make_train_step.
      batches: step -> its batch, on the devices.
      steps: where training ends; a later call may go on from there.
      learning_rate: step -> rate.
      log: takes (newest state, step, its metrics) a step late, so that the host never
        waits for the device. It raises to refuse a step that was not finite: such a
        step changed nothing, nor did the one after it.
      save: writes a state; raises to end the training that ``stop`` asked to end.
      save_every: steps between saves; 0: only when asked to stop.
      stop: whether somebody asked for an end.

    Returns:
      The state after the last step, logged but not saved.
    """
    waiting: tuple[int, Metrics] | None = None
    for step in range(int(state.step), steps):
        # 1. START THE STEP. The device works on it while the host goes on.
        state, metrics = step_fn(state, batches(step), learning_rate(step))
        # 2. LOG THE STEP BEFORE, which the device has done by now.
        if waiting is not None:
            log(state, *waiting)
        waiting = step, metrics
        # 3. SAVE, all earlier rows first. The last state is the caller's to keep.
        due = stop() or (save_every > 0 and (step + 1) % save_every == 0)
        if save is not None and due and step + 1 < steps:
            log(state, *waiting)
            waiting = None
            save(state)
    if waiting is not None:
        log(state, *waiting)
    return state
