"""Numbers that are not finite: refused where they arise, named, never stored."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.table import take
from tpmm_jax.errors import CorruptCheckpoint, NotFinite
from tpmm_jax.loop.log_probs import table_log_probs
from tpmm_jax.loop.run import Disk
from tpmm_jax.loop.task import Task
from tpmm_jax.losses import PairLogProbs, pair_loss, with_state
from tpmm_jax.mesh import put_batch
from tpmm_jax.steps import TrainState, preference_gradient_norm_step
from tpmm_jax.store.files import read_json, write_json

# What a step that was not finite leaves in its iteration's folder.
NOT_FINITE = "not_finite.json"
# Rows named in a message; the record names them all.
SHOWN = 8


@jax.jit
def _finite_leaves(params: Params) -> Params:
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), params)


def refuse_weights(params: Params, what: str) -> None:
    """Raises NotFinite, naming the first leaf, if a weight is not finite."""
    for path, good in jax.tree_util.tree_leaves_with_path(_finite_leaves(params)):
        if not good:
            raise NotFinite(
                f"{what} has weights that are NaN or infinite, the first of them"
                f" in {jax.tree_util.keystr(path)}; nothing of it was stored"
            )


def refuse_rewards(rewards_PN: np.ndarray, rows: Sequence[PairRow], what: str) -> None:
    """Raises NotFinite, naming the rows, if a reward is not finite."""
    bad = np.flatnonzero(~np.isfinite(rewards_PN).all(axis=1))
    if len(bad):
        raise NotFinite(
            f"{what}: the rewards of {len(bad)} pairs are NaN or infinite, such as of "
            f"{_listed([rows[int(i)].origin for i in bad])}; the model's weights are "
            "damaged, or overflow in bfloat16: compute in float32 "
            "(model.compute_dtype), or use a lower train.learning_rate, in a new "
            "--workdir"
        )


def refuse_log_probs(
    logps_MN: np.ndarray,
    rows: Sequence[PairRow],
    what: str,
    advice: str = "compute in float32 (model.compute_dtype), or leave the pairs out, "
    "in a new --workdir",
) -> None:
    """Raises NotFinite, naming the rows, if a log-prob is not finite."""
    bad = np.flatnonzero(~np.isfinite(logps_MN).all(axis=1))
    if len(bad):
        named = _listed([rows[int(i)].origin for i in bad])
        raise NotFinite(
            f"{what}: not finite for {named}; the model gives these tokens no "
            f"probability, or its weights are damaged: {advice}"
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    more = len(names) - SHOWN
    return shown + (f" and {more} more" if more > 0 else "")


def stop_training(
    task: Task, state: TrainState, step: int, metrics: Mapping[str, float]
) -> NoReturn:
    """Raises NotFinite for a step whose loss, gradient or metrics were not finite.

    Args:
      state: as it was before that step.
      metrics: the step's.
    """
    places = task.order.places(step)
    # Dropout goes by the step's number, which a failed step has taken away.
    state = state._replace(step=np.int32(step))
    found = offending_rows(task, state, places)
    rows = {int(place): task.rows[place].origin for place in places}
    refuse_step(task.disk, task.iteration, step, metrics, rows, found)


def refuse_step(
    disk: Disk,
    iteration: int,
    step: int,
    metrics: Mapping[str, float],
    rows: Mapping[int, str],
    found: Mapping[int, str],
) -> NoReturn:
    """Raises NotFinite for a step, and keeps a record of it in its iteration's folder.

    Args:
      rows: place -> origin of the step's pairs.
      found: place -> why, of those that are not finite by themselves.
    """
    name = next(k for k in ("loss", *metrics) if not np.isfinite(metrics[k]))
    origins = {rows[place]: why for place, why in found.items()}
    path = disk.folder(iteration) / NOT_FINITE
    again = _failed_before(path, step)
    write_json(path, {"step": step, "what": name, "pairs": origins})
    if origins:
        blame = "because of " + _listed([f"{o} ({why})" for o, why in origins.items()])
    else:
        names = _listed(list(rows.values()))
        blame = f"though none of its pairs is, taken alone ({names})"
    repeat = (
        "The same step failed before, so this is not a passing hardware fault:"
        if again
        else "The same command continues from there, and shows whether it happens "
        "again. If it does,"
    )
    raise NotFinite(
        f"iteration {iteration}, step {step}: {name} is {metrics[name]}, {blame}. "
        f"Nothing of it was stored; {_last_good(disk)}. {repeat} "
        "use a lower train.learning_rate, model.compute_dtype=float32 or "
        f"leave those pairs out, in a new --workdir. All of them: {path}"
    )


def _failed_before(path: pathlib.Path, step: int) -> bool:
    """Whether the record names this step; a damaged one is no reason to say less."""
    try:
        return path.exists() and read_json(path)["step"] == step
    except (CorruptCheckpoint, KeyError, TypeError):
        return False


def _last_good(disk: Disk) -> str:
    """Returns where training can go on from, in words."""
    kept = disk.workdir / disk.trajectory.directory.name
    policy = kept / str(disk.trajectory.steps()[-1])
    disk.work.wait()
    latest = disk.work.latest()
    if latest is None:
        return f"the last good checkpoint is {policy}, the iteration's start"
    return (
        f"the last good checkpoints are {disk.work.directory / str(latest)} (step "
        f"{latest} of the iteration) and {policy}"
    )


def offending_rows(task: Task, state: TrainState, places: np.ndarray) -> dict[int, str]:
    """Returns {place: why} of the pairs that are not finite by themselves.

    First by their log-probs and losses; if these are finite, by the gradient of each
    pair alone.
    """
    plan, title = task.plan, "which pairs are not finite"
    some = {name: x[places] for name, x in task.table.items()}
    loss = plan.config.loss
    objective = loss.objective()
    policy_BN = table_log_probs(
        plan.runner,
        task.voice,
        plan.dense(state.params, task.frozen),
        some,
        title,
        loss.ld_alpha,
    )
    reference_BN = some.get("reference_BN")
    logps = PairLogProbs(
        policy_BN=jnp.asarray(policy_BN),
        reference_BN=None if reference_BN is None else jnp.asarray(reference_BN),
        length_BN=jnp.asarray(some["completion_mask_BNT"].sum(axis=-1)),
        weight_B=jnp.asarray(some["weight_B"]),
        reward_margin_B=some.get("margin_B"),
    )
    logps, *_ = with_state(logps, jax.device_get(state.loss_state), objective)
    reasons = {"the policy's log-prob": policy_BN}
    if reference_BN is not None:
        reasons["the reference's log-prob"] = reference_BN
    reasons["its loss"] = np.asarray(pair_loss(logps, objective))[:, None]
    for why, values in reasons.items():
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            return {int(place): why for place in places[bad]}
    return _by_gradient(task, state, places)


def _by_gradient(task: Task, state: TrainState, places: np.ndarray) -> dict[int, str]:
    plan, config, found = task.plan, task.plan.config.train, {}
    norm_of = preference_gradient_norm_step(plan.decoder, plan.config.loss, config)
    for place in places:
        row = take(task.table, np.array([place]), config.filled(plan.mesh))
        if not np.isfinite(norm_of(state, put_batch(row, plan.mesh), task.frozen)):
            found[int(place)] = "its gradient"
    return found
