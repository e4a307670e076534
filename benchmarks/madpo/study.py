"""Runs the MADPO study: pairs, tuning, comparison; see README.md.

    export TPMM_ASSETS=/path/to/assets     # docs/models.md, "The stories260k model"
    python benchmarks/madpo/study.py --workdir runs/madpo

Each cell is an ordinary offline run in WORKDIR/tune/cells/NAME or
WORKDIR/study/cells/NAME; the same command continues what was stopped. Results:
WORKDIR/study/results.md, results.json and two figures. Needs the demo extra.
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "study"), str(HERE)]
from grid import Cell, Grid  # noqa: E402
from pairs import TIERS, write_pairs  # noqa: E402
from run import add_jobs, exit_code, run_study, run_tasks  # noqa: E402

from tpmm_jax.config import Config, load_config  # noqa: E402
from tpmm_jax.log.console import RunConsole  # noqa: E402

COLUMN = {"madpo.margins": "column"}
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "madpo": {"loss.name": "madpo", **COLUMN},
    "ipo_sums": {"loss.name": "ipo", "loss.length_normalized": False},
    "beta_dpo": {"loss.name": "beta_dpo"},
    "rdpo": {"loss.name": "robust", "loss.label_smoothing": 0.1},
    "drop": {"pairing.margins": "drop", **COLUMN},
    "relabel": {"pairing.margins": "relabel", **COLUMN},
}
# The tuning budget of every method: six settings, on seeds of their own, one tier.
BETAS, RATES, TUNED_ON = (0.05, 0.1, 0.3), (1e-4, 4e-4), "medium"
TUNING_SEEDS, SEEDS = (100, 101), tuple(range(1, 9))


@dataclass(frozen=True)
class TierGrid(Grid):
    """A grid whose cells take the pairs of their tier and seed.

    Attributes:
      data: the folder of pairs.
    """

    data: pathlib.Path

    def load(self, cell: Cell) -> Config:
        """Returns a cell's configuration."""
        path = self.data / f"{cell.levels['tier']}-{cell.levels['seed']}.jsonl"
        return load_config(self.config, (*cell.overrides, f"data.pairs={path}"))


def grid_of(
    lines: Mapping[str, Mapping[str, Any]],
    tiers: Sequence[str],
    seeds: Sequence[int],
    data: pathlib.Path,
) -> TierGrid:
    """Returns the grid of methods (lines), tiers (panels) and seeds."""
    axes: dict[str, Any] = {
        "seed": {str(seed): {"seed": seed} for seed in seeds},
        "method": lines,
        "tier": {tier: {} for tier in tiers},
    }
    baseline = next(iter(lines))
    path = HERE / "madpo_study.py"
    return TierGrid(path, axes, {}, "method", "tier", baseline, data)


def tuning_lines() -> dict[str, dict[str, Any]]:
    """Returns every setting of every method."""
    return {
        f"{name}_b{beta}_lr{rate}": {
            **changes, "loss.beta": beta, "train.learning_rate": rate
        }
        for name, changes in METHODS.items()
        for beta in BETAS
        for rate in RATES
    }  # fmt: skip


def chosen_lines(results: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Returns each method with its best setting by mean gold reward."""
    reward = json.loads(results.read_text())["reward"][TUNED_ON]
    best = {name: -np.inf for name in METHODS}
    found: dict[str, dict[str, Any]] = {}
    for line, changes in tuning_lines().items():
        name = line.partition("_b0")[0]
        curves = reward.get(line, {})
        if len(curves) < len(TUNING_SEEDS):
            continue  # it diverged
        mean = float(np.mean([curve[-1] for curve in curves.values()]))
        if mean > best[name]:
            best[name], found[name] = mean, changes
    return {name: found[name] for name in METHODS}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    parser = argparse.ArgumentParser(description="Runs the MADPO study.")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    add_jobs(parser)
    args, console = parser.parse_args(argv), RunConsole()
    return exit_code(lambda: run(args.workdir.resolve(), args.jobs, console), console)


def run(workdir: pathlib.Path, jobs: int, console: RunConsole) -> dict[str, str]:
    """Draws, tunes and compares; returns what failed: name -> message."""
    data = workdir / "data"
    wanted = [(TUNED_ON, seed) for seed in TUNING_SEEDS]
    wanted += [(tier, seed) for seed in SEEDS for tier in TIERS]
    draw(workdir, wanted, jobs, console)
    tune = grid_of(tuning_lines(), [TUNED_ON], TUNING_SEEDS, data)
    failed = run_study(tune, workdir / "tune", jobs, console)
    lines = chosen_lines(workdir / "tune" / "results.json")
    (workdir / "chosen.json").write_text(json.dumps(lines, indent=1) + "\n")
    study = grid_of(lines, TIERS, SEEDS, data)
    return failed | run_study(study, workdir / "study", jobs, console)


def draw(
    workdir: pathlib.Path,
    wanted: Sequence[tuple[str, int]],
    jobs: int,
    console: RunConsole,
) -> None:
    """Writes the pairs of these tiers and seeds, and their margins."""
    tasks = {
        f"{tier}-{seed}": functools.partial(write_pairs, workdir, tier, seed)
        for tier, seed in wanted
    }
    files = [workdir / "data" / f"{name}.jsonl" for name in tasks]
    amount = len(files), "sets of pairs"
    run_tasks(tasks, jobs, console, amount, lambda: sum(x.exists() for x in files))


if __name__ == "__main__":
    sys.exit(main())
