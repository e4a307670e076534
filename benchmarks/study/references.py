"""Runs the study of references and of the shipped policy; see docs/study.md.

    export TPMM_ASSETS=/path/to/assets     # docs/models.md, "The stories260k model"
    python benchmarks/study/references.py tune --workdir runs/references
    python benchmarks/study/references.py fresh --workdir runs/references
    python benchmarks/study/references.py explore --workdir runs/references
    python benchmarks/study/references.py offline --workdir runs/references
    python benchmarks/study/references.py smollm2 --workdir runs/references
    python benchmarks/study/references.py elsewhere --workdir runs/references

``tune`` runs every arm at every learning rate on the tuning seeds. ``fresh`` then runs
the fresh seeds, each arm at its best rate and some at the pressing one too, every cell
of a seed before the next seed. ``explore`` runs the exploratory settings on five of the
seeds, ``offline`` trains on files of pairs, ``smollm2`` a language model. Each cell is
an ordinary run in WORKDIR/PHASE/cells/NAME, one process a core, and ends as a line of
references.jsonl beside this file, of which analyse_references.py makes the tables. The
same command continues what was stopped: it runs the cells that have no line. Needs the
demo extra.
"""

import argparse
import functools
import gzip
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from elsewhere import evaluate_and_keep
from grid import Cell, Grid
from references_rows import FILE, CellRow, read_rows, run_and_keep
from run import add_jobs, exit_code, run_cells, run_tasks

from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
CONFIG, SMOLLM2 = CONFIGS / "stories260k.py", CONFIGS / "smollm2.py"
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
# The arms that are run at the pressing rate too.
PRIMARY = ("previous", "sft", "uniform", "learned")
TUNING_SEEDS, FRESH_SEEDS = range(100, 103), range(200, 220)
EXPLORING_SEEDS = FRESH_SEEDS[:5]
OFFLINE_SEEDS, SMOLLM2_SEEDS = range(300, 305), range(400, 402)
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
    # flips.py reads the ends of these names.
    "previous_training_flips": ("previous", ARMS["previous"]),
    "uniform_training_flips": ("uniform", UNIFORM),
    "learned_training_flips": ("learned", LEARNED),
    "learned_held_out_flips": ("learned", LEARNED),
    **{f"{arm}_poisoned": (arm, ARMS[arm]) for arm in (*PRIMARY, "best")},
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
class Run:
    """Runs the cells of a phase that have no line yet.

    Attributes:
      workdir: holds the cells' runs.
      file: holds the lines.
      jobs: processes, one core each.
    """

    workdir: pathlib.Path
    file: pathlib.Path
    jobs: int
    console: RunConsole

    def rows(self) -> list[CellRow]:
        """Returns the lines."""
        return read_rows(self.file)

    def kept(self, phase: str) -> set[str]:
        """Returns the cells of a phase that have a line."""
        return {row["cell"] for row in self.rows() if row["phase"] == phase}

    def __call__(self, grid: Grid, phase: str) -> dict[str, str]:
        """Runs what is missing; returns what failed: name -> message."""
        kept = self.kept(phase)
        cells = [cell for cell in grid.cells() if cell.name not in kept]
        run = functools.partial(run_and_keep, phase=phase, file=self.file)
        return run_cells(
            grid, cells, self.workdir / phase, self.jobs, self.console, run
        )


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


def choose(rows: Sequence[CellRow]) -> dict[str, Any]:
    """Returns each arm's rate of the highest mean reward, and ``previous``'s peaks.

    The reward is that of theta_6, or of the policy at which ``previous`` is stopped. A
    rate at which a cell failed or is missing is not chosen.
    """
    curves: dict[str, dict[float, list[list[float]]]] = {arm: {} for arm in ARMS}
    stopped: dict[float, list[float]] = {}
    for row in rows:
        if row["phase"] != "tune" or row["failed"]:
            continue
        arm, rate, rewards = row["arm"], row["rate"], row["reward/mean"]
        curves[arm].setdefault(rate, []).append(rewards)
        if arm == "previous":
            stopped.setdefault(rate, []).append(rewards[row["stopped_at"]])
    means = {arm: _means(found) for arm, found in curves.items()}
    means[STOPPED] = _means({rate: [[x] for x in xs] for rate, xs in stopped.items()})
    both = [means[arm] for arm in ALIKE]
    alike = {
        rate: (both[0][rate] + both[1][rate]) / 2 for rate in both[0] if rate in both[1]
    }
    best = {
        arm: max(found, key=found.__getitem__)
        for arm in (*ARMS, STOPPED)
        if (found := alike if arm in ALIKE else means[arm])
    }
    peaks = {
        rate: int(np.mean(curves["previous"][rate], axis=0)[:-1].argmax())
        for rate in means["previous"]
    }
    return {"rates": best, "peaks": peaks, "means": means}


def _means(curves: Mapping[float, Sequence[Sequence[float]]]) -> dict[float, float]:
    """Returns the mean last reward of each rate that has all tuning seeds."""
    return {
        rate: float(np.mean([curve[-1] for curve in some]))
        for rate, some in curves.items()
        if len(some) == len(TUNING_SEEDS)
    }


def tuning_grid(rates: Sequence[float], arms: Sequence[str] = tuple(ARMS)) -> Rates:
    """Returns the grid of the tuning seeds."""
    return grid_of(TUNING_SEEDS, {arm: rates for arm in arms}, "last")


def tune(run: Run) -> dict[str, str]:
    """Runs the tuning; returns what failed: name -> message."""
    failed = run(tuning_grid(RATES[1:]), "tune")
    rates = choose(run.rows())["rates"]
    # One step beyond the edge; "stopped" is a matter of "previous".
    edge = {arm.replace(STOPPED, "previous") for arm in rates if rates[arm] == RATES[1]}
    edge |= set(ALIKE) if edge & set(ALIKE) else set()
    if edge:
        grid = tuning_grid(RATES[:1], [arm for arm in ARMS if arm in edge])
        failed |= run(grid, "tune")
    return failed


def fresh(run: Run) -> dict[str, str]:
    """Runs the fresh seeds; returns what failed: name -> message."""
    return run(fresh_grid(best_rates(run.rows())), "fresh")


def explore(run: Run) -> dict[str, str]:
    """Runs the exploratory settings; returns what failed: name -> message."""
    return run(exploring_grid(best_rates(run.rows())), "explore")


def offline(run: Run) -> dict[str, str]:
    """Trains on files of pairs; returns what failed: name -> message."""
    files = write_offline(run.workdir / "data")
    return run(offline_grid(files, best_rates(run.rows())), "offline")


def smollm2(run: Run) -> dict[str, str]:
    """Trains SmolLM2-135M-Instruct; returns what failed: name -> message."""
    return run(smollm2_grid(), "smollm2")


def elsewhere(run: Run) -> dict[str, str]:
    """Evaluates the fresh cells' policies; returns what failed: name -> message."""
    best, kept = best_rates(run.rows()), run.kept("elsewhere")
    grid = grid_of(FRESH_SEEDS, {arm: [best[arm]] for arm in ARMS}, "mean")
    evaluate = functools.partial(
        evaluate_and_keep,
        workdir=run.workdir / "fresh",
        last=FIXED["iterations"],
        file=run.file,
    )
    tasks = {
        cell.name: functools.partial(evaluate, cell)
        for cell in grid.cells()
        if cell.name not in kept
    }
    return run_tasks(
        tasks,
        run.jobs,
        run.console,
        (len(tasks), "cells"),
        lambda: len(run.kept("elsewhere") - kept),
    )


def best_rates(rows: Sequence[CellRow]) -> dict[str, float]:
    """Returns the rates that the tuning chose.

    Raises:
      BadInput: the tuning is not over.
    """
    done = {row["cell"] for row in rows if row["phase"] == "tune"}
    if any(cell.name not in done for cell in tuning_grid(RATES[1:]).cells()):
        raise BadInput("the tuning is not over; run tune to its end first")
    best = choose(rows)["rates"]
    if missing := sorted({*ARMS, STOPPED} - set(best)):
        raise BadInput(f"every rate failed for {', '.join(missing)}")
    return best


def fresh_grid(best: Mapping[str, float]) -> Rates:
    """Returns the grid of the fresh seeds: each arm at its best rate, or pressed."""
    rates = {
        arm: {best[arm]} | ({PRESSED} if arm in PRIMARY else set()) for arm in ARMS
    }
    rates["previous"].add(best[STOPPED])
    return grid_of(FRESH_SEEDS, {a: sorted(r) for a, r in rates.items()}, "mean")


def exploring_grid(best: Mapping[str, float]) -> Grid:
    """Returns the grid of the exploratory settings."""
    axes: dict[str, Any] = {
        "seed": {str(seed): {"seed": seed} for seed in EXPLORING_SEEDS},
        "arm": {
            name: {**fields, "train.learning_rate": best[arm]}
            for name, (arm, fields) in EXPLORED.items()
        },
    }
    return Grid(CONFIG, axes, {**FIXED, "ship": "mean"}, "arm", "seed", "learned")


def write_offline(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Writes the pairs of two published sets as files for a run; returns them by name.

    Reads $TPMM_ASSETS/data/hh_harmless_base_test.jsonl.gz (Anthropic's hh-rlhf) and
    polite_impolite.json (of rasbt's LLMs-from-scratch).
    """
    data = pathlib.Path(os.environ["TPMM_ASSETS"]) / "data"
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.jsonl" for name in ("hh", "polite")}
    with gzip.open(data / "hh_harmless_base_test.jsonl.gz", "rt") as lines:
        files["hh"].write_text("".join(lines), encoding="utf-8")
    rows = [
        {
            "prompt": f"{row['instruction']} {row['input']}".strip() + "\n",
            "chosen": row["chosen"],
            "rejected": row["rejected"],
        }
        for row in json.loads((data / "polite_impolite.json").read_text())
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    files["polite"].write_text(text, encoding="utf-8")
    return files


def offline_grid(files: Mapping[str, pathlib.Path], best: Mapping[str, float]) -> Grid:
    """Returns the grid of the offline world: each set in six chunks, once each."""
    axes: dict[str, Any] = {
        "seed": {str(seed): {"seed": seed} for seed in OFFLINE_SEEDS},
        "arm": {
            arm: {**ARMS[arm], "train.learning_rate": best[arm]}
            for arm in (*PRIMARY, "best")
        },
        "data": {name: {"data.pairs": str(path)} for name, path in files.items()},
    }
    fixed = {
        **FIXED,
        "ship": "mean",
        "data.prompts": None,
        "data.eval_prompts": "stories260k:prompts",
        "scorer.name": None,
        "data.on_bad_rows": "drop",
        "data.max_prompt_length": 128,
        "data.max_completion_length": 128,
        "train.epochs": 1,
        "evaluation.num_prompts": 128,
    }
    return Grid(CONFIG, axes, fixed, "arm", "data", "previous")


def smollm2_grid() -> Grid:
    """Returns the grid of SmolLM2: the primary rules at its config's learning rate."""
    axes: dict[str, Any] = {
        "seed": {str(seed): {"seed": seed} for seed in SMOLLM2_SEEDS},
        "arm": {arm: ARMS[arm] for arm in PRIMARY},
    }
    fixed = {**FIXED, "iterations": 4, "ship": "mean"}
    return Grid(SMOLLM2, axes, fixed, "arm", "seed", "previous")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    phases = {
        "tune": tune, "fresh": fresh, "explore": explore, "offline": offline,
        "smollm2": smollm2, "elsewhere": elsewhere,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description="Runs the study of docs/study.md.")
    parser.add_argument("phase", choices=phases)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--file", type=pathlib.Path, default=FILE, help="the lines")
    add_jobs(parser)
    args, console = parser.parse_args(argv), RunConsole()
    run = Run(args.workdir.resolve(), args.file.resolve(), args.jobs, console)
    return exit_code(lambda: phases[args.phase](run), console)


if __name__ == "__main__":
    sys.exit(main())
