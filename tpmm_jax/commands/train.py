"""Trains a policy: tpmm train --config configs/quickstart.py

The same command again continues a run that was stopped or killed. Exit codes: 0 done,
1 other, 2 bad input, 3 corrupt checkpoint, 4 storage, 75 stopped on request.
"""

import argparse
import functools
import pathlib
import shlex
import sys
from collections.abc import Sequence

from tpmm_jax.commands._line import Parser, guarded
from tpmm_jax.config import Config, load_config
from tpmm_jax.errors import Stopped
from tpmm_jax.iterate import iterate
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.setup import open_run

DESCRIPTION = """\
Iterative DPO against a reference merged from all earlier policies. The same command
again continues a run.
"""
EPILOG = """\
example:
  tpmm train --config configs/smollm2.py --workdir runs/smollm2 \\
      --set loss.beta=0.2 --set iterations=3
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(prog="tpmm train", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "--config", required=True, help="a Python file with get_config()"
    )
    parser.add_argument(
        "--workdir", help="where the run is kept (default: runs/NAME of the config)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="overrides",
        help="change one field of the config, such as loss.beta=0.2; repeatable",
    )
    parser.add_argument(
        "--rescore",
        action="store_true",
        help="a scorer or judge was edited: rate all evaluations and the unfinished "
        "iteration again, and mark the iterations that an earlier scorer labelled",
    )
    return parser.parse_args(argv)


def run(
    config: Config,
    workdir: pathlib.Path,
    console: RunConsole,
    *,
    rescore: bool = False,
) -> None:
    """Runs one configuration to its end."""
    opening = open_run(config, workdir, console, rescore=rescore)
    with opening as opened, opened.voice.stop:
        iterate(opened)
        last = config.iterations
        console.next_steps(
            [
                f"look    {workdir}/report.html in a browser",
                f"try     tpmm sample {workdir}",
                f"take    tpmm export {workdir}/trajectory@{last} --output DIRECTORY",
                f"curves  tensorboard --logdir {workdir}",
            ]
        )


def train(command: Sequence[str], args: argparse.Namespace, console: RunConsole) -> int:
    """Runs one command line; a run that is stopped says how it goes on.

    Args:
      command: the arguments as they were given.
    """
    workdir = pathlib.Path(args.workdir or f"runs/{pathlib.Path(args.config).stem}")
    try:
        config = load_config(args.config, args.overrides)
        run(config, workdir, console, rescore=args.rescore)
    except Stopped as error:
        again = shlex.join(["tpmm", "train", *command])
        console.note(f"{error}; its state is saved. To continue: {again}")
        return error.exit_code
    except KeyboardInterrupt:
        console.note("stopped; what was finished is kept. The same command continues")
        return Stopped.exit_code
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    work = functools.partial(train, sys.argv[1:] if argv is None else argv)
    return guarded(work, parse_args(argv), needs_reader=True)
