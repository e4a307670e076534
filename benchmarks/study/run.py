"""Runs the cells of a grid and writes tables and figures.

    export TPMM_ASSETS=/path/to/assets     # docs/models.md, "The stories260k model"
    python benchmarks/study/run.py benchmarks/study/rules.toml --workdir runs/study

Every cell is an ordinary run, in WORKDIR/cells/NAME, of an ordinary config; so the same
command continues a study that was stopped, and any cell can be looked at with
``python -m tpmm_jax.report``. Each of --jobs processes is tied to one core and takes
cell after cell, so that a program is compiled once a process. What two cells have in
common before their first update (the prompts, the evaluation of theta_0, the first
rollouts) is sampled once and copied.

Results: WORKDIR/results.md, WORKDIR/results.json, WORKDIR/*.png. Needs the demo extra.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from analyse import write_results
from grid import Cell, Grid, read_grid

from tpmm_jax.config import Config, RewardConfig, flatten
from tpmm_jax.errors import Stopped, TpmmError
from tpmm_jax.log.console import RunConsole
from tpmm_jax.store.digests import read_listed, write_listed
from tpmm_jax.store.files import write_text

# What the prompts, theta_0's evaluation and the first rollouts do not depend on.
AFTER_FIRST_ROLLOUTS = (
    "iterations",
    "reference.",
    "loss.",
    "train.",
    "pairing.flip_probability",
)
# Files of those, with the file that says that each is complete.
SHARED = {
    "prompts.jsonl": "prompts.jsonl.source",
    "prompts.jsonl.source": "prompts.jsonl.source",
    "iterations/000/evaluation.jsonl": "iterations/000/summary.json",
    "iterations/001/rollouts.jsonl": "iterations/001/pairs.jsonl",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    args, console = parse_args(argv), RunConsole()
    return exit_code(
        lambda: run_study(read_grid(args.grid), args.workdir, args.jobs, console),
        console,
    )


def exit_code(work: Callable[[], Mapping[str, str]], console: RunConsole) -> int:
    """Returns the exit code of a study, of which ``work`` returns what failed."""
    try:
        failed = work()
    except Stopped as error:
        console.note(f"{error}; the same command continues the study")
        return error.exit_code
    except TpmmError as error:
        console.error(str(error))
        return error.exit_code
    for name, message in failed.items():
        console.error(f"{name}: {message}")
    return 1 if failed else 0


def run_study(
    grid: Grid, workdir: pathlib.Path, jobs: int, console: RunConsole
) -> dict[str, str]:
    """Runs a grid's cells and writes its tables; returns what failed: name -> message.

    Raises:
      Stopped: by Ctrl-C or SIGTERM.
    """
    cells = grid.cells()
    failed = run_cells(grid, cells, workdir, jobs, console)
    for path in write_results(grid, cells, workdir):
        console.note(f"wrote {path}")
    return failed


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(
        description="Runs the cells of a grid, each an ordinary run, and writes tables "
        "and figures. The same command again continues."
    )
    parser.add_argument("grid", type=pathlib.Path, help="a grid file (.toml)")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    add_jobs(parser)
    return parser.parse_args(argv)


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Adds --jobs, the number of processes."""

    def positive(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text!r}: wanted a number, at least 1")
        return int(text)

    parser.add_argument(
        "--jobs", type=positive, default=len(cores()),
        help="processes, one core each (default: all cores, %(default)s)",
    )  # fmt: skip


def run_cells(
    grid: Grid,
    cells: Sequence[Cell],
    workdir: pathlib.Path,
    jobs: int,
    console: RunConsole,
    run: Callable[[Grid, Cell, pathlib.Path], str | None] | None = None,
) -> dict[str, str]:
    """Runs what is missing of all cells; returns what failed: name -> message.

    Args:
      run: runs one of them (default: ``run_cell``).

    Raises:
      Stopped: by Ctrl-C or SIGTERM.
    """
    folders = {cell.name: workdir / "cells" / cell.name for cell in cells}
    total = {cell.name: rounds(grid.load(cell)) for cell in cells}

    def done() -> int:
        return sum(
            min(total[name], len(list(folder.glob("iterations/*/summary.json"))))
            for name, folder in folders.items()
        )

    tasks = {
        cell.name: functools.partial(run or run_cell, grid, cell, workdir)
        for cell in cells
    }
    amount = sum(total.values()), "iterations"
    return run_tasks(tasks, jobs, console, amount, done)


def run_tasks(
    tasks: Mapping[str, Callable[[], str | None]],
    jobs: int,
    console: RunConsole,
    amount: tuple[int, str],
    done: Callable[[], int],
) -> dict[str, str]:
    """Runs tasks, each in one of the processes; returns what failed: name -> message.

    Args:
      tasks: by name; each returns what went wrong, in words, or None.
      jobs: processes, one core each.
      amount: what there is to do, and its unit.
      done: returns how much of it is done.

    Raises:
      Stopped: by Ctrl-C or SIGTERM.
    """
    failed: dict[str, str] = {}
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for job in range(jobs):
        free.put(cores()[job % len(cores())])
    with (
        raise_on_sigterm(),
        concurrent.futures.ProcessPoolExecutor(
            jobs, context, initializer=pin, initargs=(free,)
        ) as pool,
        console.phase("study", *amount) as bar,
    ):
        running = {pool.submit(task): name for name, task in tasks.items()}
        shown = 0
        try:
            waiting = set(running)
            while waiting:
                finished, waiting = concurrent.futures.wait(waiting, timeout=2)
                bar.advance(done() - shown, failed=str(len(failed)))
                shown = done()
                for task in finished:
                    if (message := task.result()) is not None:
                        failed[running[task]] = message
        except BaseException as error:
            processes = list(getattr(pool, "_processes", {}).values())
            pool.shutdown(wait=False, cancel_futures=True)  # forgets them
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
            for process in processes:
                process.join()  # it saves first
            if isinstance(error, KeyboardInterrupt):
                raise Stopped("stopped") from None
            raise
    return failed


@contextlib.contextmanager
def raise_on_sigterm():
    """SIGTERM is taken as Ctrl-C is."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def cores() -> list[int]:
    """Returns the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(free: multiprocessing.Queue) -> None:
    """Ties this process to a core, before jax counts them."""
    core = free.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def run_cell(grid: Grid, cell: Cell, workdir: pathlib.Path) -> str | None:
    """Runs one cell to its end; returns what went wrong, in words, or None."""
    from tpmm_jax.commands import train, train_reward

    folder = workdir / "cells" / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    config = grid.load(cell)
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        console = RunConsole(log, log)
        try:
            if finished(folder, config):
                return None
            if isinstance(config, RewardConfig):
                train_reward.run(config, folder, console)
            else:
                share(config, grid, cell, workdir)
                train.run(config, folder, console)
        except Stopped as error:
            log.flush()
            os._exit(error.exit_code)  # this process takes no further cell
        except TpmmError as error:
            # A diverged cell is a result too; the others go on.
            console.error(str(error))
            return str(error)
    return None


def rounds(config: Config | RewardConfig) -> int:
    """Returns how many iterations a cell has, theta_0's evaluation included."""
    return 1 if isinstance(config, RewardConfig) else config.iterations + 1


def finished(folder: pathlib.Path, config: Config | RewardConfig) -> bool:
    """Whether every iteration of a cell is there."""
    first = 1 if isinstance(config, RewardConfig) else 0
    places = range(first, first + rounds(config))
    return all((folder / f"iterations/{t:03d}/summary.json").exists() for t in places)


def share(config: Config, grid: Grid, cell: Cell, workdir: pathlib.Path) -> None:
    """Copies what an earlier cell sampled before the two begin to differ."""
    folder, key = workdir / "cells" / cell.name, share_key(config)
    if (folder / "trajectory").exists():
        return
    for other in grid.cells():
        donor = workdir / "cells" / other.name
        if other == cell or share_key(grid.load(other)) != key:
            continue
        for name, complete in SHARED.items():
            # An offline run has no rollouts.
            given = (donor / complete).exists() and (donor / name).exists()
            if given and not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                if name.startswith("iterations/"):
                    write_listed(folder / name, read_listed(donor / name))
                else:
                    write_text(folder / name, (donor / name).read_text())


def share_key(config: Config) -> dict[str, object]:
    """Returns the fields that the shared files depend on."""
    return {
        name: value
        for name, value in flatten(config).items()
        if not name.startswith(AFTER_FIRST_ROLLOUTS)
    }


if __name__ == "__main__":
    sys.exit(main())
