"""Iterative DPO against a merged reference: the algorithm, an iteration a loop.

Nothing is carried from one iteration to the next but what is on disk.
"""

import time

from tpmm_jax.errors import TpmmError
from tpmm_jax.hosts import first_only
from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.loop.evaluation import evaluate
from tpmm_jax.loop.reference import reference_log_probs
from tpmm_jax.loop.rescoring import rescore
from tpmm_jax.loop.rollouts import gather_pairs
from tpmm_jax.loop.run import Plan, Run
from tpmm_jax.loop.scale import fix_scale
from tpmm_jax.loop.training import train
from tpmm_jax.report.page import write_report
from tpmm_jax.report.plots import plot_reward

# The share of a session's time that its pages may take; the last is always drawn.
DRAWING = 0.05


def iterate(run: Run) -> None:
    """Runs iterations 1..T, or those from the first one that is not finished."""
    disk, voice = run.disk, run.voice
    plan = fix_scale(run.plan, disk, voice)
    last = plan.config.iterations
    if rescore(plan, disk, voice):
        print_table(run)
        draw(run)
    first = disk.next_iteration(last)
    began, drawing = time.monotonic(), 0.0
    if first == 0:
        evaluate(plan, disk, voice, 0, None)
    for iteration in range(max(first, 1), last + 1):
        started = time.monotonic()
        pairs = gather_pairs(plan, disk, voice, iteration)
        if iteration not in disk.trajectory.steps():
            logps_MN = reference_log_probs(plan, disk, voice, iteration, pairs)
            train(plan, disk, voice, iteration, pairs, logps_MN)
        else:
            # Killed after theta_t was stored: its training state is of no more use.
            disk.work.clear()
        evaluate(plan, disk, voice, iteration, pairs)
        done = time.monotonic()
        disk.log_seconds("iteration", iteration, done - started)
        print_table(run)
        if iteration == last or drawing <= DRAWING * (done - began):
            draw(run)
            drawing += time.monotonic() - done
    if first > last:
        # A kill may have come between the last row and its pictures.
        draw(run)
        voice.console.note(finished_text(plan, max(disk.trajectory.steps())))


def finished_text(plan: Plan, done: int) -> str:
    """Returns that nothing was left to do, and how the run gets longer.

    Args:
      done: the run's last iteration.
    """
    asked = plan.config.iterations
    text = f"finished before: {asked} of {done} iterations are asked for"
    if done <= asked:
        text = f"finished before: all {asked} iterations are done"
    # Offline each iteration has its share of the pairs, by the number of iterations.
    if plan.config.offline:
        return text
    return f"{text}; --set iterations={done + 1} adds one"


def print_table(run: Run) -> None:
    """Prints the table of all finished iterations."""
    run.voice.console.iteration_table(iteration_rows(run.disk.workdir))


def draw(run: Run) -> None:
    """Writes report.html, and reward by iteration where there is a reward."""
    first_only(lambda: _draw(run))


def _draw(run: Run) -> None:
    workdir = run.disk.workdir
    rows = iteration_rows(workdir)
    if any("reward/mean" in row for row in rows):
        rule = run.plan.config.reference.rule
        plot_reward({rule: rows}, workdir / "plots" / "reward.png")
    try:
        write_report([workdir])
    except TpmmError as error:
        # A picture of the run is not worth the run.
        run.voice.console.warn(f"report.html was not written: {error}")
