"""Runs the study of references and of the shipped policy; see docs/study.md.

    export TPMM_ASSETS=/path/to/assets     # docs/models.md, "The stories260k model"
    python benchmarks/study/references.py tune --workdir runs/references
    python benchmarks/study/references.py fresh --workdir runs/references
    python benchmarks/study/references.py explore --workdir runs/references

``tune`` runs every arm at every learning rate on the tuning seeds and writes
WORKDIR/chosen.json, each arm's best rate and peak. ``fresh`` then runs the fresh seeds,
both arms of the study, every cell of a seed before the next seed, and at its end
WORKDIR/failed.json, what ended with an error; analyse_references.py makes the tables.
``explore`` runs the exploratory settings on five of the seeds and writes its own tables
to WORKDIR/explore. Each cell is an ordinary run in WORKDIR/PHASE/cells/NAME, one
process a core; the same command continues what was stopped. Needs the demo extra.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from early_stopping import pooled_accuracies, stopping_place
from grid import Cell, Grid
from run import add_jobs, exit_code, run_cells, run_study

from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import iteration_rows
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
# Arms that get one rate, so that their difference is not one of rates.
ALIKE = ("uniform", "learned")
TUNING_SEEDS, FRESH_SEEDS = range(100, 103), range(200, 225)
EXPLORING_SEEDS = FRESH_SEEDS[:5]
LEARNED, UNIFORM = ARMS["learned"], ARMS["uniform"]
FLIPS = "pairing.flip_probability"
# name -> (the arm whose rate it takes, its fields)
EXPLORED: dict[str, tuple[str, dict[str, Any]]] = {
    "learned": ("learned", LEARNED),
    "previous_half": ("previous", {"reference.rule": "previous", **HALF}),
    "best_half": ("best", {"reference.rule": "best", **HALF}),
    **{
        f"{arm}_share_{share:g}": (
            arm, {**ARMS[arm], "reference.anchor_share": share}
        )
        for arm in ALIKE
        for share in (0.0, 0.25, 0.75)
    },
    "robust_0.4": ("robust", {**ARMS["robust"], "loss.label_smoothing": 0.4}),
    **{
        f"{arm}_flips_{flips:g}": (arm, {**ARMS[arm], FLIPS: flips})
        for arm in ("previous", "uniform", "learned")
        for flips in (0.0, 0.2)
    },
    **{
        f"{arm}_one_epoch": (arm, {**ARMS[arm], "train.epochs": 1})
        for arm in ("previous", "uniform", "learned")
    },
    # 192 pairs train, as everywhere.
    "learned_512_held_out": ("learned", {
        **LEARNED, "rollout.prompts_per_iteration": 704,
        "pairing.holdout_fraction": 512 / 704,
    }),
    "ema": ("uniform", {"reference.rule": "ema"}),
    "greedy_soup": ("uniform", {"reference.rule": "greedy_soup"}),
    "trust_region": ("uniform", {
        "reference.rule": "trust_region", "reference.trust_region_tau": 4,
    }),
    "learned_layers": ("learned", {
        **LEARNED, "reference.fit": "exact", "reference.granularity": "layer",
    }),
    "uniform_log_probs": ("uniform", {**UNIFORM, "reference.mix": "log_probs"}),
    "best_from_theta_0": ("best", {"reference.rule": "best", "train_from": "theta_0"}),
    "uniform_from_reference": ("uniform", {**UNIFORM, "train_from": "reference"}),
    "previous_agreement": ("previous", {
        "reference.rule": "previous", "pairing.weights": "agreement",
    }),
}  # fmt: skip
FIXED = {
    "iterations": 6,
    "pairing.flip_probability": 0.4,
    "evaluation.sets": {},
    "evaluation.scorers": {},
}
# The first is run where an arm is best at the second.
RATES, PRESSED = (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4), 2e-4
# ``previous``, stopped early, is no run of its own; see early_stopping.py.
STOPPED = "stopped"


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


def choose(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns each arm's rate of the highest mean reward, and ``previous``'s peaks.

    The reward is that of theta_6, or of the policy at which ``previous`` is stopped. A
    rate at which a cell failed or is missing is not chosen.
    """
    curves: dict[str, dict[float, list[list[float]]]] = {arm: {} for arm in ARMS}
    stopped: dict[float, list[float]] = {}
    for cell in tuning_grid(RATES).cells():
        folder = workdir / "tune" / "cells" / cell.name
        arm, rate = cell.levels["arm"], float(cell.levels["rate"])
        rewards = [row["reward/mean"] for row in iteration_rows(folder)]
        if len(rewards) < FIXED["iterations"] + 1:
            continue
        curves[arm].setdefault(rate, []).append(rewards)
        if arm == "previous":
            place = stopping_place(pooled_accuracies(folder))
            stopped.setdefault(rate, []).append(rewards[place])
    means = {arm: _means(found, at=-1) for arm, found in curves.items()}
    means[STOPPED] = _means({rate: [[x] for x in xs] for rate, xs in stopped.items()})
    for arm in ALIKE:
        both = [means[a] for a in ALIKE]
        means[f"{arm} (both)"] = {
            rate: sum(found[rate] for found in both) / 2
            for rate in both[0]
            if rate in both[1]
        }
    best = {
        arm: max(found, key=found.__getitem__)
        for arm in (*ARMS, STOPPED)
        if (found := means.get(f"{arm} (both)", means[arm]))
    }
    peaks = {
        f"{rate:g}": int(np.mean(curves["previous"][rate], axis=0)[:-1].argmax())
        for rate in means["previous"]
    }
    return {"rates": best, "peaks": peaks, "means": means}


def _means(
    curves: Mapping[float, Sequence[Sequence[float]]], at: int = -1
) -> dict[float, float]:
    """Returns the mean last reward of each rate that has all tuning seeds."""
    return {
        rate: float(np.mean([curve[at] for curve in some]))
        for rate, some in curves.items()
        if len(some) == len(TUNING_SEEDS)
    }


def tuning_grid(rates: Sequence[float], arms: Sequence[str] = tuple(ARMS)) -> Rates:
    """Returns the grid of the tuning seeds."""
    return grid_of(TUNING_SEEDS, {arm: rates for arm in arms}, "last")


def tune(workdir: pathlib.Path, jobs: int, console: RunConsole) -> dict[str, str]:
    """Runs the tuning and chooses the rates; returns what failed: name -> message."""
    failed = run_study(tuning_grid(RATES[1:]), workdir / "tune", jobs, console)
    rates = choose(workdir)["rates"]
    # One step beyond the edge; "stopped" is a matter of "previous".
    edge = {arm.replace(STOPPED, "previous") for arm in rates if rates[arm] == RATES[1]}
    edge |= set(ALIKE) if edge & set(ALIKE) else set()
    if edge:
        grid = tuning_grid(RATES[:1], [arm for arm in ARMS if arm in edge])
        failed |= run_cells(grid, grid.cells(), workdir / "tune", jobs, console)
    write_json(workdir / "chosen.json", choose(workdir))
    return failed


def fresh(workdir: pathlib.Path, jobs: int, console: RunConsole) -> dict[str, str]:
    """Runs the fresh seeds; returns what failed: name -> message."""
    cells = (grid := fresh_grid(workdir)).cells()
    failed = run_cells(grid, cells, workdir / "fresh", jobs, console)
    write_json(workdir / "failed.json", failed)
    return failed


def explore(workdir: pathlib.Path, jobs: int, console: RunConsole) -> dict[str, str]:
    """Runs the exploratory settings; returns what failed: name -> message."""
    best = read_chosen(workdir)["rates"]
    lines = {
        name: {**fields, "train.learning_rate": best[arm]}
        for name, (arm, fields) in EXPLORED.items()
    }
    axes: dict[str, Any] = {
        "seed": {str(seed): {"seed": seed} for seed in EXPLORING_SEEDS},
        "setting": lines,
        "world": {"stories260k": {}},
    }
    fixed = {**FIXED, "ship": "mean"}
    grid = Grid(CONFIG, axes, fixed, "setting", "world", "learned")
    return run_study(grid, workdir / "explore", jobs, console)


def read_chosen(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns chosen.json.

    Raises:
      BadInput: the rates are not chosen yet.
    """
    path = workdir / "chosen.json"
    if not path.exists():
        raise BadInput(f"{path} is not there; run tune to its end first")
    return json.loads(path.read_text(encoding="utf-8"))


def fresh_grid(workdir: pathlib.Path) -> Rates:
    """Returns the grid of the fresh seeds: each arm pressed, and at its own best rate.

    Raises:
      BadInput: the rates are not chosen yet, or an arm has none.
    """
    best = read_chosen(workdir)["rates"]
    if missing := sorted({*ARMS, STOPPED} - set(best)):
        raise BadInput(f"{workdir}/chosen.json has no rate of {', '.join(missing)}")
    rates = {arm: {PRESSED, best[arm]} for arm in ARMS}
    rates["previous"].add(best[STOPPED])
    return grid_of(FRESH_SEEDS, {a: sorted(r) for a, r in rates.items()}, "mean")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    phases = {"tune": tune, "fresh": fresh, "explore": explore}
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
