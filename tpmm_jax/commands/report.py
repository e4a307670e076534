"""Makes report.html of a run: tpmm report WORKDIR

Exit codes: 0 done, 1 other, 2 bad input, 3 corrupt file, 4 storage.
"""

import argparse
import webbrowser
from collections.abc import Sequence

from tpmm_jax.errors import TpmmError
from tpmm_jax.log.console import RunConsole
from tpmm_jax.report.page import NAME, write_report


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(
        prog="tpmm report",
        description="Makes one HTML file of a run: rewards, win rates, KL, merge "
        "weights, sample answers,\nconfiguration. It opens without a network. A run "
        "that is still going may be reported too.\nOf several runs it makes a "
        "comparison, with paired differences where they were\nevaluated on the same "
        "prompts.",
        epilog="examples:\n"
        f"  tpmm report runs/smollm2            runs/smollm2/{NAME}\n"
        f"  tpmm report runs/learned runs/sft   {NAME}, a comparison\n"
        "  tpmm report runs/a runs/b --output a-and-b.html --open yes",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "workdirs", nargs="+", metavar="WORKDIR", help="a run's folder; several compare"
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


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    args = parse_args(argv)
    console = RunConsole()
    try:
        path = write_report(args.workdirs, args.output)
    except TpmmError as error:
        console.error(str(error))
        return error.exit_code
    console.note(f"wrote {path}")
    if args.open == "yes" and not webbrowser.open(path.resolve().as_uri()):
        console.warn(f"no browser could be started; open {path} yourself")
    return 0
