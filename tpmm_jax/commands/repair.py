"""Mends a run's folder: tpmm repair WORKDIR

Exit codes: 0 done, 2 bad input, 3 damage that only a copy mends, 4 storage.
"""

import argparse
import pathlib
from collections.abc import Sequence

from tpmm_jax.commands._line import Parser, guarded
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.repair import repair

DESCRIPTION = """\
Compares every file of a run but policies' weights with its digest. What is damaged is
moved to WORKDIR/damaged and made again by the command that the run was started with;
lost lines of trajectory.jsonl and metrics.jsonl are put back. Nothing is deleted, and
nothing is given up unless an option says so.
"""
EPILOG = """\
examples:
  tpmm repair runs/x                  after an error that names a damaged file
  tpmm repair runs/x --give-up 3      give up theta_3 and all later policies
  tpmm repair runs/x --evaluate 2     evaluate theta_2 and all later ones again
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(prog="tpmm repair", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("workdir", metavar="WORKDIR", help="a run's folder")
    parser.add_argument(
        "--give-up",
        type=int,
        metavar="N",
        help="move policy N, its iteration and all later ones aside",
    )
    parser.add_argument(
        "--evaluate",
        type=int,
        metavar="N",
        help="move the evaluations from iteration N on aside; the policies stay",
    )
    return parser.parse_args(argv)


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
