"""The options of tpmm repair."""

import argparse
from collections.abc import Sequence

from tpmm_jax.commands.options.shared import Parser

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
