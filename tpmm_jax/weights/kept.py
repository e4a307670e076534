"""The models that a run keeps: policies in trajectory/, reward models in reward/."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput, CorruptCheckpoint, nearest_path
from tpmm_jax.models import Decoder, ModelConfig
from tpmm_jax.store import Trajectory, read_json
from tpmm_jax.store.digests import read_listed_json
from tpmm_jax.weights.hub import TRAJECTORY

# Which policy an iteration recommends, and the names that it may have.
SHIP, LAST, MEAN, LEARNED = "ship.json", "last", "mean", "learned"


def run_workdir(directory: pathlib.Path, kept: str = TRAJECTORY) -> pathlib.Path | None:
    """Returns the workdir if this is a run's, or the folder of its models in one.

    Args:
      kept: that folder: of policies, or of reward models.
    """
    for workdir in (directory, directory.parent):
        inside = workdir == directory or directory.name == kept
        if inside and all((workdir / x).is_dir() for x in (kept, "model")):
            return workdir
    return None


def committed_steps(workdir: pathlib.Path, kept: str = TRAJECTORY) -> list[int]:
    """Returns the steps of a run's trajectory, all of them whole.

    Args:
      kept: the folder of its policies, or of its reward models.

    Raises:
      BadInput: no run, or none committed yet.
      CorruptCheckpoint: one of them is damaged; leaving it out would hide that.
    """
    steps, damaged = held_steps(workdir, kept)
    if damaged:
        raise damaged_step(workdir, kept, *min(damaged.items()))
    if not steps:
        raise BadInput(f"{workdir}/{kept} holds no model yet; has the run begun?")
    return steps


def recommended(workdir: pathlib.Path) -> str:
    """Returns the policy that a run recommends after its last step, by name.

    Raises:
      BadInput, CorruptCheckpoint: see ``committed_steps``; the run has not chosen yet.
    """
    config, last = workdir / "config.json", committed_steps(workdir)[-1]
    ship = read_json(config).get("ship", LAST) if config.exists() else LAST
    if ship not in ("auto", LEARNED) or last == 0:
        return ship if last else LAST
    path = workdir / "iterations" / f"{last:03d}" / SHIP
    if not path.exists():
        raise BadInput(
            f"{workdir} has ship={ship}, and {path} is not there: theta_{last} is not "
            "evaluated. Continue the run, or name a policy: "
            f"{workdir}/policy@last, {workdir}/policy@mean"
        )
    return read_listed_json(path)["chosen"]


def weights_of_mean(workdir: pathlib.Path, name: str, last: int) -> dict[int, float]:
    """Returns the weights above 0 of theta_0 to theta_last in a mean; of equal ones, 1.

    Raises:
      BadInput: the run has not learned any.
    """
    if name != LEARNED:
        return shares_of({}, last)
    path = workdir / "iterations" / f"{last:03d}" / SHIP
    record = read_listed_json(path) if path.exists() else {}
    if "weights" not in record:
        why = "holds no weights" if path.exists() else "is not there"
        raise BadInput(
            f"{workdir}/policy@{LEARNED}..{last}: {path} {why}; a run with "
            f"ship={LEARNED} writes them after each iteration"
        )
    return shares_of(record, last)


def shares_of(record: Mapping[str, Any], last: int) -> dict[int, float]:
    """Returns what ship.json says of the weights of theta_0 to theta_last."""
    if not record.get("learned"):
        return dict.fromkeys(range(last + 1), 1.0)
    return {k: weight for k, weight in enumerate(record["weights"]) if weight}


def held_steps(workdir: pathlib.Path, kept: str) -> tuple[list[int], dict[int, str]]:
    """Returns the whole steps, and the damaged ones with what is wrong."""
    if not (workdir / kept).is_dir():
        hint = nearest_path(workdir) or "; is it such a run's workdir?"
        raise BadInput(f"{workdir} holds no {kept}{hint}")
    with Trajectory(workdir / kept, read_only=True) as trajectory:
        return trajectory.steps(), trajectory.damaged()


def damaged_step(
    workdir: pathlib.Path, kept: str, step: int, why: str
) -> CorruptCheckpoint:
    """Returns the error for a damaged step."""
    return CorruptCheckpoint(
        f"{workdir}/{kept}@{step} was committed, but is damaged: {why}. Restore "
        "it from a copy, or name the other steps one by one"
    )


def refuse_untrained(workdir: pathlib.Path, kept: str, step: int) -> None:
    """Raises BadInput if a run's best reward model is its start with a drawn head."""
    if kept == TRAJECTORY or step:
        return
    with Trajectory(workdir / kept, read_only=True) as trajectory:
        start = trajectory.meta(step)
    # The seed stands beside a start that was a causal model, or beside its base.
    if "seed" in start or "seed" in start.get("base", {}):
        raise BadInput(
            f"{workdir} keeps no trained reward model: the head of {kept}@0 is as it "
            "was drawn. Let tpmm train_reward come to its first better held-out loss, "
            "with another train.learning_rate where it did not"
        )


def check_stored(
    workdir: pathlib.Path, kept: str, step: int, config: ModelConfig
) -> None:
    """Refuses a model/config.json whose sizes are not those of a stored step."""
    with Trajectory(workdir / kept, read_only=True) as trajectory:
        held = _shapes(trajectory.abstract(step))
    wanted = _shapes(Decoder(config).abstract_params())
    wrong = [x for x in {**wanted, **held} if wanted.get(x) != held.get(x)]
    if wrong:
        name = wrong[0]
        raise BadInput(
            f"{workdir}/model/config.json is not that of the run: it asks for {name} "
            f"of shape {wanted.get(name)}, {kept}@{step} holds {held.get(name)}; "
            "restore the file from a copy"
        )


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
