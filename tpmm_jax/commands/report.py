"""Makes report.html of a run: tpmm report WORKDIR

Exit codes: 0 done, 1 other, 2 bad input, 3 corrupt file, 4 storage.
"""

import argparse
import webbrowser
from collections.abc import Sequence

from tpmm_jax.commands._line import Parser, guarded
from tpmm_jax.log.console import RunConsole
from tpmm_jax.report.page import NAME, write_report

DESCRIPTION = """\
Makes one HTML file of a run: rewards, win rates, KL, merge weights, sample answers,
configuration. It opens without a network. A run that is still going can be reported
too. For several runs it makes a comparison, with paired differences where they were
evaluated on the same prompts.
"""
EPILOG = f"""\
examples:
  tpmm report runs/smollm2            runs/smollm2/{NAME}
  tpmm report runs/learned runs/sft   {NAME}, a comparison
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
        help=f"the page (default: WORKDIR/{NAME}; of several runs ./{NAME})",
    )
    parser.add_argument(
        "--open",
        choices=("yes", "no"),
        default="no",
        help="show it in the browser (default: %(default)s)",
    )
    return parser.parse_args(argv)


def report(args: argparse.Namespace, console: RunConsole) -> None:
    """Writes the page, and shows it if asked to."""
    path = write_report(args.workdirs, args.output)
    console.note(f"wrote {path}")
    if args.open == "yes" and not webbrowser.open(path.resolve().as_uri()):
        console.warn(f"no browser could be started; open {path} yourself")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    return guarded(report, parse_args(argv))
