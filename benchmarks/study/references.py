"""Runs the study of references and of the shipped policy; see docs/study.md.

    export TPMM_ASSETS=/path/to/assets     # docs/models.md, "The stories260k model"
    python benchmarks/study/references.py tune --workdir runs/references
    python benchmarks/study/references.py fresh --workdir runs/references

``tune`` runs every arm at every learning rate on the tuning seeds and writes
WORKDIR/chosen.json, each arm's best rate. ``fresh`` then runs the fresh seeds, both
arms of the study, every cell of a seed before the next seed. Each cell is an ordinary
run in WORKDIR/tune/cells/NAME or WORKDIR/fresh/cells/NAME, one process a core; the same
command continues what was stopped. analyse_references.py makes the tables. Needs the
demo extra.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from grid import Cell, Grid
from run import add_jobs, exit_code, run_cells, run_study

from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.store.files import write_json

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "stories260k.py"
HALF = {"reference.anchor_share": 0.5}
ARMS: dict[str, dict[str, Any]] = {
    "previous": {"reference.rule": "previous"},
    "sft": {"reference.rule": "sft"},
    "uniform": {"reference.rule": "uniform", **HALF},
    "learned": {"reference.rule": "learned", **HALF},
    "best": {"reference.rule": "best"},
    "dr_dpo": {"reference.rule": "previous", "loss.name": "dr_dpo"},
    "robust": {
        "reference.rule": "previous",
        "loss.name": "robust",
        "loss.label_smoothing": 0.3,
    },
}
FIXED = {
    "iterations": 6,
    "pairing.flip_probability": 0.4,
    "evaluation.sets": {},
    "evaluation.scorers": {},
}
RATES, PRESSED = (5e-5, 1e-4, 2e-4, 4e-4), 2e-4
TUNING_SEEDS, FRESH_SEEDS = range(100, 103), range(200, 225)


@dataclass(frozen=True)
class Rates(Grid):
    """A grid in which each arm runs at some of the learning rates.

    Attributes:
      rates: arm -> its rates.
    """

    rates: Mapping[str, Sequence[float]]

    def cells(self) -> list[Cell]:
        """Returns the cells, every arm and rate of a seed before the next seed."""
        wanted = {(arm, f"{rate:g}") for arm in self.rates for rate in self.rates[arm]}
        return [
            cell
            for cell in super().cells()
            if (cell.levels["arm"], cell.levels["rate"]) in wanted
        ]


def grid_of(
    seeds: Sequence[int], rates: Mapping[str, Sequence[float]], ship: str
) -> Rates:
    """Returns the grid of these seeds, every arm at its rates."""
    axes: dict[str, Any] = {
        "seed": {str(seed): {"seed": seed} for seed in seeds},
        "arm": ARMS,
        "rate": {f"{rate:g}": {"train.learning_rate": rate} for rate in RATES},
    }
    return Rates(
        CONFIG, axes, {**FIXED, "ship": ship}, "arm", "rate", "previous", rates
    )


def choose(results: pathlib.Path) -> dict[str, float]:
    """Returns each arm's rate of the highest mean reward of theta_6.

    Raises:
      BadInput: a cell of the tuning is not there.
    """
    reward = json.loads(results.read_text(encoding="utf-8"))["reward"]
    found = {}
    for arm in ARMS:
        means = {}
        for rate in RATES:
            curves = reward.get(f"{rate:g}", {}).get(arm, {})
            if len(curves) < len(TUNING_SEEDS):
                raise BadInput(
                    f"{results} has {len(curves)} of {len(TUNING_SEEDS)} seeds of "
                    f"{arm} at {rate:g}; run tune to its end first"
                )
            means[rate] = float(np.mean([curve[-1] for curve in curves.values()]))
        found[arm] = max(means, key=means.__getitem__)
    return found


def tune(workdir: pathlib.Path, jobs: int, console: RunConsole) -> dict[str, str]:
    """Runs the tuning and chooses the rates; returns what failed: name -> message."""
    grid = grid_of(TUNING_SEEDS, {arm: RATES for arm in ARMS}, "last")
    failed = run_study(grid, workdir / "tune", jobs, console)
    write_json(workdir / "chosen.json", choose(workdir / "tune" / "results.json"))
    return failed


def fresh(workdir: pathlib.Path, jobs: int, console: RunConsole) -> dict[str, str]:
    """Runs the fresh seeds; returns what failed: name -> message."""
    cells = (grid := fresh_grid(workdir)).cells()
    return run_cells(grid, cells, workdir / "fresh", jobs, console)


def fresh_grid(workdir: pathlib.Path) -> Rates:
    """Returns the grid of the fresh seeds: each arm pressed, and at its own best rate.

    Raises:
      BadInput: the rates are not chosen yet.
    """
    path = workdir / "chosen.json"
    if not path.exists():
        raise BadInput(f"{path} is not there; run tune to its end first")
    best = json.loads(path.read_text(encoding="utf-8"))
    return grid_of(FRESH_SEEDS, {arm: (PRESSED, best[arm]) for arm in ARMS}, "mean")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    phases = {"tune": tune, "fresh": fresh}
    parser = argparse.ArgumentParser(description="Runs the study of docs/study.md.")
    parser.add_argument("phase", choices=phases)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    add_jobs(parser)
    args, console = parser.parse_args(argv), RunConsole()
    return exit_code(
        lambda: phases[args.phase](args.workdir.resolve(), args.jobs, console), console
    )


if __name__ == "__main__":
    sys.exit(main())
