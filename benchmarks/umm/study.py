"""Runs the UMM-RM study, part by part; see README.md.

    export TPMM_ASSETS=... TPMM_RATINGS=... TPMM_MINILM=...
    python benchmarks/umm/study.py train   --workdir runs/umm-study
    python benchmarks/umm/study.py pool    --workdir runs/umm-study
    python benchmarks/umm/study.py measure --workdir runs/umm-study
    python benchmarks/umm/study.py loop    --workdir runs/umm-study
    python benchmarks/umm/study.py tables  --workdir runs/umm-study

Each part goes on where it was stopped, by the same command. The arms that are most
needed come first, seed by seed, so that a study that is cut short has whole seeds.
"""

import argparse
import functools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arms import (
    BACKBONES,
    DENSE,
    ENSEMBLE,
    HERE,
    LEARNED,
    LONGER,
    MEMBERS,
    MIXTURE,
    RULES,
    WARM,
    parent,
    run_folder,
    run_grid,
    source,
)
from grid import Cell, Grid
from run import add_jobs, exit_code, run_cells, run_tasks

from tpmm_jax.config import Config, load_config
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole

# Reward models that DPO is run against.
LOOPED = (DENSE, LONGER, MIXTURE, LEARNED)
BEST_OF, SAMPLES = 64, 128


@dataclass(frozen=True)
class LoopGrid(Grid):
    """The runs of DPO, each against one reward model.

    Attributes:
      workdir: of the reward models.
    """

    workdir: pathlib.Path

    def load(self, cell: Cell) -> Config:
        """Returns a cell's configuration."""
        arm, seed = cell.levels["arm"], int(cell.levels["seed"])
        scorer = f"scorer.name=reward:{source(self.workdir, arm, seed)}"
        return load_config(self.config, [*cell.overrides, scorer])


def train(args: argparse.Namespace, console: RunConsole) -> dict[str, str]:
    """The reward models: the dense ones, then all that go on from them."""
    backbone = BACKBONES[args.backbone]
    first = run_grid(args.workdir, backbone, {DENSE: {}}, args.seeds)
    failed = run_cells(first, first.cells(), args.workdir, args.jobs, console)
    if failed:
        return failed
    runs = chosen(backbone.runs, args.arms)
    grid = run_grid(args.workdir, backbone, runs, args.seeds)
    return run_cells(grid, grid.cells(), args.workdir, args.jobs, console)


def explore(args: argparse.Namespace, console: RunConsole) -> dict[str, str]:
    """The exploratory mixtures, of the first seed."""
    backbone = BACKBONES[args.backbone]
    runs = chosen(backbone.exploratory, args.arms)
    grid = run_grid(args.workdir, backbone, runs, backbone.seeds[:1])
    return run_cells(grid, grid.cells(), args.workdir, args.jobs, console)


def chosen(runs: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """Returns the runs of these names; of all without names.

    Raises:
      BadInput: there is no such run.
    """
    for name in names or ():
        if name not in runs:
            raise BadInput(f"--arms {name}: known are {', '.join(runs)}")
    return {name: x for name, x in runs.items() if not names or name in names}


def pool(args: argparse.Namespace, console: RunConsole) -> dict[str, str]:
    """The gold judge, and the answers that every reward model picks from."""
    import umm_gold
    import umm_loop

    from tpmm_jax.commands import best_of_n

    umm_gold.fit(args.workdir)
    path = args.workdir / "pool_prompts.jsonl"
    rows = [json.dumps({"prompt": text}) + "\n" for text in umm_loop.evaluated()]
    path.write_text("".join(rows))
    code = best_of_n.main(
        [
            umm_loop.stories260k.model_directory(),
            *("--prompts", str(path), "--gold", "umm_gold:score"),
            *("--proxy", "length=umm_gold:length", "--n", str(BEST_OF)),
            *("--samples", str(SAMPLES), "--output", str(args.workdir / "pool")),
            *("--max-new-tokens", str(umm_loop.NEW_TOKENS)),
        ]
    )
    return {"pool": f"tpmm best_of_n ended with code {code}"} if code else {}


def measure(args: argparse.Namespace, console: RunConsole) -> dict[str, str]:
    """The rewards of every arm whose runs are there."""
    from measure import measure as measure_arm
    from measure import measured

    backbone = BACKBONES[args.backbone]
    # Members are measured with the ensemble, in its process.
    wanted = [
        (arm, seed)
        for seed in args.seeds
        for arm in backbone.arms(seed)
        if ready(args.workdir, arm, seed)
    ]
    tasks = {
        f"{arm}, seed {seed}": functools.partial(
            measure_arm, args.workdir, args.backbone, arm, seed
        )
        for arm, seed in wanted
    }
    return run_tasks(
        tasks,
        args.jobs,
        console,
        (len(wanted), "arms"),
        lambda: sum(measured(args.workdir, *one).exists() for one in wanted),
    )


def ready(workdir: pathlib.Path, arm: str, seed: int) -> bool:
    """Whether all runs that an arm is made of have ended."""
    run, rule = parent(arm)
    needed = [arm]
    if arm in (WARM, ENSEMBLE):
        needed = [LONGER, *MEMBERS]
    elif rule in RULES:
        needed = [run]
    return all(
        (run_folder(workdir, one, seed) / "iterations/001/summary.json").exists()
        for one in needed
    )


def loop(args: argparse.Namespace, console: RunConsole) -> dict[str, str]:
    """Two iterations of DPO against each of four reward models."""
    axes: dict[str, Any] = {
        "seed": {str(seed): {"seed": seed} for seed in args.seeds},
        "arm": {arm: {} for arm in LOOPED},
    }
    grid = LoopGrid(HERE / "umm_loop.py", axes, {}, "arm", "arm", LONGER, args.workdir)
    return run_cells(grid, grid.cells(), args.workdir / "loop", args.jobs, console)


def tables(args: argparse.Namespace, console: RunConsole) -> dict[str, str]:
    """results.md, results.json and the figures, of what there is."""
    from analyse_umm import write_results

    for path in write_results(args.workdir, BACKBONES[args.backbone], args.seeds):
        console.note(f"wrote {path}")
    return {}


Part = Callable[[argparse.Namespace, RunConsole], dict[str, str]]
PARTS: dict[str, Part] = {
    "train": train,
    "explore": explore,
    "pool": pool,
    "measure": measure,
    "loop": loop,
    "tables": tables,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("part", choices=PARTS)
    add("--workdir", type=pathlib.Path, required=True)
    add("--backbone", choices=BACKBONES, default="films")
    add("--seeds", type=int, nargs="+", help="some of the registered ones")
    add("--arms", nargs="+", help="some of the runs of train or explore")
    add_jobs(parser)
    args, console = parser.parse_args(argv), RunConsole()
    args.workdir = args.workdir.resolve()
    args.workdir.mkdir(parents=True, exist_ok=True)
    args.seeds = args.seeds or list(BACKBONES[args.backbone].seeds)
    os.environ["TPMM_UMM"] = str(args.workdir)
    return exit_code(lambda: PARTS[args.part](args, console), console)


if __name__ == "__main__":
    sys.exit(main())
