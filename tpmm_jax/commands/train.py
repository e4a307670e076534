"""Trains a policy: tpmm train --config configs/quickstart.py

The same command again continues a run that was stopped or killed. Exit codes: 0 done,
1 other, 2 bad input, 3 corrupt checkpoint, 4 storage, 75 stopped on request.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Sequence

from tpmm_jax.commands._line import guarded
from tpmm_jax.commands._training import run_in_workdir
from tpmm_jax.commands.options.train import parse_args
from tpmm_jax.config import Config, flatten, load_config
from tpmm_jax.hosts import agree_same
from tpmm_jax.iterate import iterate
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.setup import open_run


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
        shipped = "" if config.ship != "last" else f"/trajectory@{config.iterations}"
        console.next_steps(
            [
                f"look    {workdir}/report.html in a browser",
                f"try     tpmm sample {workdir}",
                f"take    tpmm export {workdir}{shipped} --output DIRECTORY",
                f"curves  tensorboard --logdir {workdir}",
            ]
        )


def train(command: Sequence[str], args: argparse.Namespace, console: RunConsole) -> int:
    """Runs one command line; a run that is stopped says how it goes on.

    Args:
      command: the arguments as they were given.
    """

    def start(workdir: pathlib.Path) -> None:
        config = load_config(args.config, args.overrides)
        agree_same(flatten(config))
        run(config, workdir, console, rescore=args.rescore)

    return run_in_workdir(["tpmm", "train", *command], args, console, start)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    work = functools.partial(train, sys.argv[1:] if argv is None else argv)
    return guarded(work, parse_args(argv), needs_reader=True, many=True)
