"""Mends a run's folder: tpmm repair WORKDIR

Exit codes: 0 done, 2 bad input, 3 damage that only a copy mends, 4 storage.
"""

import argparse
import pathlib
from collections.abc import Sequence

from tpmm_jax.commands._line import guarded
from tpmm_jax.commands.options.repair import parse_args
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.repair import repair


def work(args: argparse.Namespace, console: RunConsole) -> None:
    """Runs one command line."""
    workdir = pathlib.Path(args.workdir)
    done = repair(workdir, console.note, give_up=args.give_up, evaluate=args.evaluate)
    if done:
        console.note("start the run again with the same command")
    else:
        console.note(
            f"{workdir}: every file is as it was written, nothing to do. The weights "
            "of policies were not read: whatever uses one compares it first"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    return guarded(work, parse_args(argv))
