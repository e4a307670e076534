"""Trains a reward model: tpmm train_reward --config configs/reward_stories260k.py

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
from tpmm_jax.commands.options.train_reward import parse_args
from tpmm_jax.config import RewardConfig, flatten, load_config
from tpmm_jax.errors import TpmmError
from tpmm_jax.hosts import agree_same, first_only
from tpmm_jax.log.compared import show_compared
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.rewards import failure, show_rewards
from tpmm_jax.merging import EXPERT_RULES
from tpmm_jax.report.page import write_report
from tpmm_jax.reward_runs.finish import finish
from tpmm_jax.reward_runs.merge_back import merge_back
from tpmm_jax.reward_runs.plan import ITERATION, KEPT, MERGED
from tpmm_jax.reward_runs.routers import ROUTERS
from tpmm_jax.reward_runs.setup import open_reward_run
from tpmm_jax.reward_runs.training import is_trained, train
from tpmm_jax.store.digests import read_listed_json


def run(config: RewardConfig, workdir: pathlib.Path, console: RunConsole) -> None:
    """Runs one configuration to its end."""
    opening = open_reward_run(config, workdir, console)
    with opening as opened, opened.voice.stop:
        plan, disk, voice = opened.plan, opened.disk, opened.voice
        if disk.is_evaluated(ITERATION):
            path = disk.folder(ITERATION) / "summary.json"
            summary = read_listed_json(path)
            merge_back(plan, disk, voice, summary["kept"])
        else:
            if not is_trained(plan, disk):
                train(plan, disk, voice)
            summary = finish(plan, disk, voice)
        disk.log.flush()
        path = disk.folder(ITERATION) / ROUTERS
        routers = read_listed_json(path) if path.exists() else {}
        show_rewards(console, summary, routers)
        show_compared(console, summary)
        first_only(lambda: report(workdir, console))
        lines = [f"look    {workdir}/report.html in a browser"]
        if text := failure(summary):
            console.warn(text)
        else:
            merged = [r for r in EXPERT_RULES if r in summary.get("compared", {})]
            lines += [
                f"use     --set scorer.name=reward:{workdir} of tpmm train",
                f"load    tpmm_jax.load_reward({f'{workdir}/{KEPT}@best'!r})",
                *(
                    f"merged  tpmm_jax.load_reward({f'{workdir}/{MERGED}/{rule}'!r})"
                    for rule in merged
                ),
            ]
        console.next_steps([*lines, f"curves  tensorboard --logdir {workdir}"])


def report(workdir: pathlib.Path, console: RunConsole) -> None:
    """Writes report.html; a picture of the run is not worth the run."""
    try:
        write_report([workdir])
    except TpmmError as error:
        console.warn(f"report.html was not written: {error}")


def train_reward(
    command: Sequence[str], args: argparse.Namespace, console: RunConsole
) -> int:
    """Runs one command line; a run that is stopped says how it goes on.

    Args:
      command: the arguments as they were given.
    """

    def start(workdir: pathlib.Path) -> None:
        config = load_config(args.config, args.overrides, kind=RewardConfig)
        agree_same(flatten(config))
        run(config, workdir, console)

    return run_in_workdir(["tpmm", "train_reward", *command], args, console, start)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    work = functools.partial(train_reward, sys.argv[1:] if argv is None else argv)
    return guarded(work, parse_args(argv), needs_reader=True, many=True)
