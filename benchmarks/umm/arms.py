"""What is compared: the runs of tpmm train_reward, and what is made of them.

An arm is a run, a mixture merged by a rule, an average of runs' weights, or the mean of
their rewards. All runs but ``dense`` go on from the dense run of their seed.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "study"), str(HERE)]
from grid import Cell, Grid  # noqa: E402

from tpmm_jax.config import RewardConfig, load_config  # noqa: E402

DENSE, LONGER, MIXTURE, LEARNED = "dense", "longer", "mixture", "learned"
WARM, ENSEMBLE = "warm", "ensemble"
RULES = ("uniform", "gating", LEARNED)
MEMBERS = ("member_1", "member_2", "member_3")
# Rivals that each more complicated arm is held against.
BASELINE = LONGER


@dataclass(frozen=True)
class Backbone:
    """One model that the whole comparison is made with.

    Attributes:
      first, further: config files of the dense run and of all others.
      seeds: of the comparison; the first alone has the exploratory runs.
      experts: fields that make the mixture.
      shared: level of the coefficient -> arm, beside the mixture's 0.5.
      exploratory: arm -> fields of mixtures of the first seed alone.
      limits: test set -> the pairs that are measured; None: all.
      length: tokens of the longest text.
    """

    name: str
    first: str
    further: str
    seeds: Sequence[int]
    experts: Mapping[str, Any]
    shared: Mapping[str, Any]
    exploratory: Mapping[str, Mapping[str, Any]]
    limits: Mapping[str, int | None]

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        """Returns {run: fields} of every run that goes on from the dense one."""
        members = {
            name: {"order_seed": 1001 + k} for k, name in enumerate(MEMBERS)
        }  # the fourth member is the longer-trained one itself
        found: dict[str, dict[str, Any]] = {
            LONGER: {},
            MIXTURE: dict(self.experts),
            "dropout": {"noise.dropout": 0.1},
            **members,
        }
        if self.shared:
            found["shared_0.9"] = {**self.experts, **self.shared}
        return found

    def arms(self, seed: int) -> list[str]:
        """Returns the arms of a seed, in the order of the tables."""
        found = [DENSE, LONGER, "dropout", MIXTURE, *RULES, WARM, ENSEMBLE]
        if self.shared:
            found += ["shared_0.9", "shared_0.9/learned"]
        if seed == self.seeds[0]:
            for name in self.exploratory:
                found += [name, f"{name}/learned"]
        return found


FILMS = Backbone(
    name="films",
    first="../rewards/films.py",
    further="umm_films.py",
    seeds=(0, 1, 2),
    experts={"experts.count": 4, "experts.top_k": 2},
    shared={"experts.shared": 0.9},
    exploratory={
        f"{k}_of_8": {"experts.count": 8, "experts.top_k": k} for k in (2, 4, 6)
    },
    limits={"movie": None, "amazon": None, "nyt": None},
)
SMOLLM2 = Backbone(
    name="smollm2",
    first="umm_smollm2.py",
    further="umm_smollm2.py",
    seeds=(0,),
    experts={"experts.count": 4, "experts.top_k": 2, "experts.layers": "26-29"},
    shared={},
    exploratory={},
    limits={"movie": 2000, "amazon": 600},
)
BACKBONES = {one.name: one for one in (FILMS, SMOLLM2)}


def parent(arm: str) -> tuple[str, str]:
    """Returns (run, rule) of a merged arm.

    >>> parent("gating"), parent("4_of_8/learned")
    (('mixture', 'gating'), ('4_of_8', 'learned'))
    """
    run, slash, rule = arm.rpartition("/")
    return (run, rule) if slash else (MIXTURE, arm)


@dataclass(frozen=True)
class RunGrid(Grid):
    """The reward runs of a backbone.

    Attributes:
      workdir: where the dense runs are that the others go on from.
    """

    workdir: pathlib.Path
    backbone: Backbone

    def load(self, cell: Cell) -> RewardConfig:
        """Returns a cell's configuration."""
        arm, seed = cell.levels["arm"], int(cell.levels["seed"])
        overrides = list(cell.overrides)
        path = HERE / (self.backbone.first if arm == DENSE else self.backbone.further)
        if arm != DENSE:
            start = run_folder(self.workdir, DENSE, seed)
            overrides.append(f"model.source={start}/reward@best")
        return load_config(path, overrides, kind=RewardConfig)


def run_grid(
    workdir: pathlib.Path,
    backbone: Backbone,
    runs: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
) -> RunGrid:
    """Returns the grid of some runs on some seeds, seeds the slowest."""
    axes: dict[str, Any] = {
        "seed": {str(seed): {"seed": seed} for seed in seeds},
        "arm": runs,
    }
    fixed: dict[str, Any] = {}
    return RunGrid(HERE, axes, fixed, "arm", "arm", BASELINE, workdir, backbone)


def run_folder(workdir: pathlib.Path, run: str, seed: int) -> pathlib.Path:
    """Returns the workdir of a run."""
    return workdir / "cells" / f"seed_{seed}-arm_{run}"


def source(workdir: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
    """Returns what an arm's model is loaded from; measure.py makes the average."""
    run, rule = parent(arm)
    if arm == WARM:
        return workdir / "models" / f"{arm}-{seed}"
    if rule in RULES:
        return run_folder(workdir, run, seed) / "merged" / rule
    return run_folder(workdir, arm, seed)
