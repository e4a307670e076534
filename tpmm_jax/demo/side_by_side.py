"""One configuration run with two references, one after the other, and compared."""

import argparse
import dataclasses
import pathlib
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tpmm_jax.commands.options.shared import add_compiling, add_overrides
from tpmm_jax.compiling import keep_programs
from tpmm_jax.config import Config, load_config
from tpmm_jax.data.records import Rollout
from tpmm_jax.errors import BadInput, Stopped, TpmmError
from tpmm_jax.evaluation import paired_interval
from tpmm_jax.iterate import iterate
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.log.progress import clock_text
from tpmm_jax.loop.setup import open_run
from tpmm_jax.loop.theta_0 import build_model
from tpmm_jax.report.plots import plot_reward
from tpmm_jax.stopping import watched
from tpmm_jax.store.records import read_records

RULES = ("previous", "learned")
Rows = list[dict[str, Any]]


def main(config_path: str, argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of ``python configs/quickstart.py``."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog=f"python {config_path}",
        description=f"Runs the references {' and '.join(RULES)} and compares them. "
        "The same command again continues.",
    )
    name = pathlib.Path(config_path).stem
    parser.add_argument(
        "--workdir", default=f"runs/{name}", help="default: %(default)s"
    )
    add_overrides(
        parser, "change one field of the config, such as iterations=2; repeatable"
    )
    add_compiling(parser)
    args, console = parser.parse_args(argv), RunConsole()
    if args.compilation_cache:
        keep_programs()
    with watched(console.note, console.stop_bars):
        return _main(config_path, argv, args, console)


def _main(
    config_path: str,
    argv: Sequence[str],
    args: argparse.Namespace,
    console: RunConsole,
) -> int:
    again = shlex.join(["python", config_path, *argv])
    try:
        for override in args.overrides:
            if override.startswith("reference.rule"):
                raise BadInput(
                    f"--set {override}: this command compares {' and '.join(RULES)}; "
                    "for one rule use tpmm train"
                )
        config = load_config(config_path, args.overrides)
        side_by_side(config, pathlib.Path(args.workdir), console)
    except Stopped as error:
        console.note(f"{error}; its state is saved. To continue: {again}")
        return error.exit_code
    except KeyboardInterrupt:
        console.note(f"stopped; what was finished is kept. To continue: {again}")
        return Stopped.exit_code
    except TpmmError as error:
        console.error(str(error))
        return error.exit_code
    return 0


def side_by_side(config: Config, workdir: pathlib.Path, console: RunConsole) -> None:
    """Runs ``config`` with each of RULES in workdir/RULE, then compares them."""
    started = time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    source = config.model.source
    if ":" in source and not pathlib.Path(source).exists():
        made = workdir / "theta_0"
        if not made.exists():
            build_model(source, made, console)
        # Both rules start from the same weights.
        model = dataclasses.replace(config.model, source=str(made))
        config = dataclasses.replace(config, model=model)
    for rule in RULES:
        reference = dataclasses.replace(config.reference, rule=rule)
        run_rule(
            dataclasses.replace(config, reference=reference), workdir / rule, console
        )
    runs = {rule: iteration_rows(workdir / rule) for rule in RULES}
    plot = plot_reward(runs, workdir / "reward.png")
    console.note("")
    for line in comparison(runs):
        console.note(line)
    console.note("")
    console.note(verdict(workdir, config.iterations))
    console.note("")
    for line in before_and_after(workdir / RULES[1], config.iterations):
        console.note(line)
    console.note("")
    console.note(f"{clock_text(time.monotonic() - started)} in all")
    console.next_steps(next_steps(workdir, config, plot))


def run_rule(config: Config, workdir: pathlib.Path, console: RunConsole) -> None:
    """Runs one configuration to its end, or what is missing of it."""
    with open_run(config, workdir, console) as run, run.voice.stop:
        last = config.iterations
        coming = run.disk.next_iteration(last)
        if coming > last:
            console.note(f"{workdir}: all {last} iterations are finished already")
        elif coming > 0:
            console.note(f"{workdir}: continues after {coming - 1} finished iterations")
        iterate(run)


def comparison(runs: Mapping[str, Rows]) -> list[str]:
    """Returns a table: reward with its 95 % interval and KL, of each rule."""
    cells = [
        ["iter", *(f"{rule}: {what}" for rule in runs for what in ("reward", "KL"))]
    ]
    by_rule = [{row["iteration"]: row for row in rows} for rows in runs.values()]
    for t in sorted({t for rows in by_rule for t in rows}):
        line = [str(t)]
        for rows in by_rule:
            line += _cells(rows[t]) if t in rows else ["", ""]
        cells.append(line)
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths)) for line in cells]
    return [lines[0], "─" * len(lines[0]), *lines[1:]]


def _cells(row: Mapping[str, Any]) -> list[str]:
    half = (row["reward/high"] - row["reward/low"]) / 2
    return [f"{row['reward/mean']:.2f} ± {half:.2f}", f"{row['kl/theta_0']:.1f}"]


def verdict(workdir: pathlib.Path, iteration: int) -> str:
    """Returns what the last evaluation says of the two, and no more than that."""
    before, after = (_rewards(workdir / rule, iteration) for rule in RULES)
    gap = paired_interval(after, before)
    found = (
        f"After iteration {iteration}, reward of {RULES[1]} minus {RULES[0]}: "
        f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f}, 95 %, paired by prompt). "
    )
    if not gap.excludes_0:
        return found + "On this seed the two cannot be told apart."
    better = RULES[1] if gap.low > 0 else RULES[0]
    return found + f"On this seed {better} is ahead; another seed may differ."


def before_and_after(workdir: pathlib.Path, iteration: int) -> list[str]:
    """Returns an answer of theta_0 and one of the last policy to the same prompt.

    The prompt is the one whose reward rose by the median: neither the best nor the
    worst to show.
    """
    rewards = [_rewards(workdir, t)[:, 0] for t in (0, iteration)]
    order = np.argsort(rewards[1] - rewards[0], kind="stable")
    place = int(order[len(order) // 2])
    answers = [_answers(workdir, t)[place] for t in (0, iteration)]
    return [
        f"{workdir.name}, the prompt of median gain: {answers[0].prompt}",
        *(
            f"  {what:<6} ({some[place]:+.2f})  {answer.responses[0].strip()}"
            for what, some, answer in zip(("before", "after"), rewards, answers)
        ),
    ]


def _rewards(workdir: pathlib.Path, iteration: int) -> np.ndarray:
    """Returns rewards [prompts, samples] of an evaluation, prompts in their order."""
    return np.array([row.rewards for row in _answers(workdir, iteration)])


def _answers(workdir: pathlib.Path, iteration: int) -> list[Rollout]:
    path = workdir / "iterations" / f"{iteration:03d}" / "evaluation.jsonl"
    return read_records(path, Rollout)


def next_steps(workdir: pathlib.Path, config: Config, plot: pathlib.Path) -> list[str]:
    """Returns what to look at and what to run next."""
    last, learned = config.iterations, workdir / RULES[1]
    prompt = "Our Monday lunch at the old cafe:"
    return [
        f"the plot       {plot}",
        f"what it wrote  {learned}/iterations/{last:03d}/evaluation.jsonl "
        "(000: before training)",
        f"compare        tpmm report {' '.join(str(workdir / rule) for rule in RULES)}",
        f"try            tpmm sample {learned} --prompt {shlex.quote(prompt)}",
        f"take           tpmm export {learned} --output exported",
        f'in Python      tpmm_jax.read_run("{learned}")',
        "other noise    python configs/quickstart.py --workdir "
        f"{workdir}_noisier --set pairing.flip_probability=0.4",
        "a real model   tpmm train --config configs/smollm2.py",
        'your own       README.md, "Your model, your data, your reward"',
    ]
