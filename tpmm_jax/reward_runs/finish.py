"""The end of a reward run: the best model measured, calibrated and written down."""

import json
from typing import Any

import numpy as np

from tpmm_jax.axes import CHOSEN, REJECTED
from tpmm_jax.config import HELD_OUT
from tpmm_jax.evaluation import calibration_error, fit_temperature, reliability
from tpmm_jax.loop.run import Disk
from tpmm_jax.loop.safety import NOT_FINITE
from tpmm_jax.loop.voice import Voice
from tpmm_jax.reward_runs.measuring import (
    as_row,
    measure_sets,
    refuse_constant,
    rewards_of,
)
from tpmm_jax.reward_runs.merge_back import (
    MIXTURE,
    compare,
    merge_back,
    stored_rewards,
    write_rewards,
)
from tpmm_jax.reward_runs.plan import ITERATION, RewardPlan
from tpmm_jax.reward_runs.routers import (
    ROUTERS,
    Routing,
    as_scalars,
    describe,
    read_start,
)
from tpmm_jax.store.digests import (
    is_finished,
    read_listed_json,
    remove_listed,
    write_listed,
    write_listed_json,
)


def finish(plan: RewardPlan, disk: Disk, voice: Voice) -> dict[str, Any]:
    """Measures the best model as it is stored; returns what summary.json says.

    A mixture is merged back, and measured beside its start and what it merges into.

    Raises:
      NotFinite, TpmmError: its rewards are not finite, or all the same.
    """
    kept = disk.trajectory.steps()[-1]
    meta = disk.trajectory.meta(kept)
    rewards, routers = _measure(plan, disk, voice, kept)
    measures = measure_sets(plan, rewards)
    margins = {n: r[:, CHOSEN] - r[:, REJECTED] for n, r in rewards.items()}
    temperature = fit_temperature(margins[HELD_OUT])
    for name, found in measures.items():
        if temperature is not None:
            curve = reliability(margins[name] / temperature)
            found["ece_calibrated"] = calibration_error(curve)
    held = measures[HELD_OUT]
    summary = {
        "kept": kept,
        "step": meta.get("step", 0),
        "steps": plan.order.steps,
        "temperature": temperature,
        "beats_chance": held["accuracy/low"] > 0.5,
        "pairs": len(plan.sets.train),
        "shared_prompts": plan.sets.shared,
        "digest": disk.trajectory.digest(kept),
        "sets": measures,
    }
    folder = disk.folder(ITERATION)
    if routers:
        merge_back(plan, disk, voice, kept)
        summary["routers"] = as_scalars(routers)
        summary["compared"] = compare(plan, disk, voice, rewards)
        summary["merge_weights_from"] = HELD_OUT
    for name in plan.sets.tests:
        end = "" if name == HELD_OUT else f"-{name}"
        path = folder / f"held_out{end}.jsonl"
        lines = _lines(plan, name, rewards[name])
        write_listed(path, "".join(lines).encode(), replace=True)
    write_listed_json(folder / "summary.json", summary, replace=True)
    values = as_row(measures) | summary.get("routers", {})
    values |= {"best_step": summary["step"], "pairs": summary["pairs"]}
    if temperature is not None:
        values["temperature"] = temperature
    disk.log.rewind(ITERATION, lambda row: row["kind"] != "iteration")
    disk.log.log("iteration", iteration=ITERATION, step=None, values=values)
    disk.log.finish(ITERATION)
    disk.work.clear()
    remove_listed(folder / NOT_FINITE)
    return summary


def _measure(
    plan: RewardPlan, disk: Disk, voice: Voice, kept: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns a stored model's rewards by set, and of a mixture router.json."""
    path = disk.folder(ITERATION) / ROUTERS
    known = stored_rewards(plan, disk, MIXTURE)
    if known is not None and is_finished(path):
        return known, read_listed_json(path)
    start = read_start(plan, disk)
    routing = None if start is None else Routing()
    params = disk.policy(kept)
    title = "measure the best"
    with voice.phase(title, plan.tested, "answers") as advance:
        rewards = rewards_of(plan, params, advance, title, routing)
    refuse_constant(rewards)
    if start is None or routing is None:
        return rewards, {}
    routers = describe(plan.decoder.config, params, routing, start)
    write_listed_json(path, routers, replace=True)
    write_rewards(disk, MIXTURE, rewards)
    return rewards, routers


def _lines(plan: RewardPlan, name: str, rewards_PN: np.ndarray) -> list[str]:
    """Returns a line per pair of a set: where it stands, its group and its rewards."""
    lines, decode = [], plan.codec.decode
    for row, (chosen, rejected) in zip(plan.sets.tests[name], rewards_PN):
        record = {
            "origin": row.origin,
            "group": row.group,
            "prompt": decode(row.prompt_ids),
            "chosen": decode(row.chosen_ids),
            "rejected": decode(row.rejected_ids),
            "chosen_length": len(row.chosen_ids),
            "rejected_length": len(row.rejected_ids),
            "chosen_reward": float(chosen),
            "rejected_reward": float(rejected),
        }
        lines.append(json.dumps(record) + "\n")
    return lines
