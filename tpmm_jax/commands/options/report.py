"""The options of tpmm report."""

import argparse
from collections.abc import Sequence

from tpmm_jax.commands.options.shared import Parser

DESCRIPTION = """\
Makes one HTML file of a run: rewards, win rates, KL, merge weights, sample answers,
configuration. It opens without a network. A run that is still going can be reported
too. For several runs it makes a comparison, with paired differences where they were
evaluated on the same prompts.
"""
EPILOG = """\
examples:
  tpmm report runs/smollm2            runs/smollm2/report.html
  tpmm report runs/learned runs/sft   report.html, a comparison
  tpmm report runs/a runs/b --output a-and-b.html --open yes
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(prog="tpmm report", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "workdirs",
        nargs="+",
        metavar="WORKDIR",
        help="a run's folder; several are compared",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the page (default: WORKDIR/report.html; of several runs ./report.html)",
    )
    parser.add_argument(
        "--open",
        choices=("yes", "no"),
        default="no",
        help="show it in the browser (default: %(default)s)",
    )
    return parser.parse_args(argv)
