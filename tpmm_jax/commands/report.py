"""Makes report.html of a run: tpmm report WORKDIR

Exit codes: 0 done, 1 other, 2 bad input, 3 corrupt file, 4 storage.
"""

import argparse
import webbrowser
from collections.abc import Sequence

from tpmm_jax.commands._line import guarded
from tpmm_jax.commands.options.report import parse_args
from tpmm_jax.log.console import RunConsole
from tpmm_jax.report.page import write_report


def report(args: argparse.Namespace, console: RunConsole) -> None:
    """Writes the page, and shows it if asked to."""
    path = write_report(args.workdirs, args.output)
    console.note(f"wrote {path}")
    if args.open == "yes" and not webbrowser.open(path.resolve().as_uri()):
        console.warn(f"no browser could be started; open {path} yourself")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    return guarded(report, parse_args(argv))
