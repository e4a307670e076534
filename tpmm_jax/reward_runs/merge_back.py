"""The best mixture's experts merged back, and every model on the same pairs.

    merged/RULE                        an ordinary dense reward model
    iterations/001/merged-RULE.json    weights, how they were learned, digest
    iterations/001/rewards-MODEL.npz   rewards [P, 2] of every set

What is there is not computed again; a merge that is stopped begins anew.
"""

import functools
import pathlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from tpmm_jax.axes import CHOSEN, REJECTED, Params
from tpmm_jax.config import HELD_OUT
from tpmm_jax.evaluation import accuracy_gain
from tpmm_jax.facade import kept_start_text
from tpmm_jax.hosts import count, once
from tpmm_jax.loop.run import Disk
from tpmm_jax.loop.voice import Voice
from tpmm_jax.merging import (
    ExpertPairs,
    ExpertsContext,
    choose_experts,
    expert_pairs,
)
from tpmm_jax.mesh import fetch
from tpmm_jax.models import Decoder
from tpmm_jax.reward_runs.measuring import measure_sets, rewards_of
from tpmm_jax.reward_runs.plan import ITERATION, KEPT, MERGED, RewardPlan
from tpmm_jax.store import tree_digest
from tpmm_jax.store.digests import (
    is_finished,
    read_npz,
    write_listed_json,
    write_npz,
)
from tpmm_jax.weights.loading import resolve_reward
from tpmm_jax.weights.saving import save
from tpmm_jax.weights.source import Model

# Names of the models that no rule made.
START, MIXTURE = "start", "mixture"
# By set, [P, N].
Rewards = dict[str, np.ndarray]
# Returns a model's parameters, and what runs them.
Find = Callable[[], tuple[Params, Decoder]]


def merge_back(plan: RewardPlan, disk: Disk, voice: Voice, kept: int) -> None:
    """Merges the experts of a stored model by every rule, where that is to be done.

    Raises:
      CorruptCheckpoint: made again, a merge is not what it was.
      Stopped: a signal came.
    """
    if plan.decoder.config.experts is None:
        return
    for rule in plan.config.merge.rules:
        record = disk.folder(ITERATION) / f"{MERGED}-{rule}.json"
        if not (_place(disk, rule).is_dir() and is_finished(record)):
            _merge(plan, disk, voice, kept, rule, record)


def _place(disk: Disk, rule: str) -> pathlib.Path:
    return disk.workdir / MERGED / rule


def _merge(
    plan: RewardPlan,
    disk: Disk,
    voice: Voice,
    kept: int,
    rule: str,
    record: pathlib.Path,
) -> None:
    """Merges by one rule; writes its record, then the model."""
    config = plan.config.merge.of(rule, plan.config.seed)
    source = resolve_reward(disk.workdir / f"{KEPT}@{kept}")
    pairs = None
    if config.needs_pairs:
        limit, pad_id = source.config.max_positions, plan.codec.pad_id
        pairs = expert_pairs(plan.sets.tests[HELD_OUT], config, limit, pad_id)
    context = ExpertsContext(config, plan.decoder, disk.policy(kept), pairs)
    learns = rule == "learned"
    total, unit = (config.steps, "steps") if learns else (1, "models")
    with voice.phase(f"merge the experts, {rule}", total, unit) as advance:
        context.step = lambda loss: advance(1, loss=f"{loss:.4f}")
        context.advance = lambda pairs: voice.stop.check()
        weights_LX = choose_experts(context)
        advance(0 if learns else 1)
    if context.report.get("kept") == "start":
        voice.console.warn(kept_start_text(context.report))
    params = context.merge(weights_LX)
    found = {
        "rule": rule,
        "step": kept,
        "weights": weights_LX.tolist(),
        "pairs": _counted(pairs),
        "pairs_held_out": 0 if pairs is None else len(pairs.held_rows),
        "digest": tree_digest(params),
        **context.report,
    }
    write_listed_json(record, found)
    place = _place(disk, rule)
    if not place.is_dir():
        place.parent.mkdir(exist_ok=True)
        if count() > 1:
            # Read on all processes, written by the first.
            params = jax.tree.map(fetch, params)
        decoder = dense(plan.decoder)
        made = Model(decoder, params, source.tokenizer, {}, source.generation)
        once(lambda: save(made, place), f"save {place}")


def _counted(pairs: ExpertPairs | None) -> int:
    return 0 if pairs is None else len(pairs.rows)


def dense(decoder: Decoder) -> Decoder:
    """Returns the decoder of a mixture without its experts."""
    return replace(decoder, config=replace(decoder.config, experts=None))


def compare(
    plan: RewardPlan, disk: Disk, voice: Voice, mixture: Rewards
) -> dict[str, dict[str, Any]]:
    """Returns the measures of the start, the mixture and what it was merged into.

    They are those of ``measure_sets``, by model and set; all but the start's have
    ``gain``, by how much the accuracy is above the start's, and its 95 % interval
    gain/low and gain/high, paired by pair, where the two differ.
    """

    def merged(rule: str) -> tuple[Params, Decoder]:
        decoder = dense(plan.decoder)
        source = resolve_reward(_place(disk, rule))
        return source.read(decoder, "float32"), decoder

    finders: dict[str, Find] = {START: lambda: _start(plan, disk)}
    for rule in plan.config.merge.rules:
        finders[rule] = functools.partial(merged, rule)
    found = {
        name: _rewards(plan, disk, voice, name, find) for name, find in finders.items()
    }
    rewards = {START: found.pop(START), MIXTURE: mixture, **found}
    return {name: _measures(plan, rewards, name) for name in rewards}


def _start(plan: RewardPlan, disk: Disk) -> tuple[Params, Decoder]:
    """The dense model that was upcycled, or the mixture that training began with."""
    params = disk.policy(0)
    if plan.config.experts.count == 0:
        return params, plan.decoder
    # The shared expert is the dense feed-forward, whatever the noise of the copies.
    params = {name: part for name, part in params.items() if name != "experts"}
    return params, dense(plan.decoder)


def _rewards(
    plan: RewardPlan, disk: Disk, voice: Voice, name: str, find: Find
) -> Rewards:
    """Returns a model's rewards of every set, as they are stored or computed now."""
    known = stored_rewards(plan, disk, name)
    if known is not None:
        return known
    params, decoder = find()
    title = f"measure {name}"
    with voice.phase(title, plan.tested, "answers") as advance:
        rewards = rewards_of(plan, params, advance, title, decoder=decoder)
    write_rewards(disk, name, rewards)
    return rewards


def stored_rewards(plan: RewardPlan, disk: Disk, name: str) -> Rewards | None:
    """Returns a model's rewards of every set; None if they are not there."""
    path = _path(disk, name)
    if not is_finished(path):
        return None
    arrays = read_npz(path)
    return {of_set: arrays[f"rewards_{of_set}"] for of_set in plan.sets.tests}


def write_rewards(disk: Disk, name: str, rewards: Rewards) -> None:
    """Writes what ``stored_rewards`` reads."""
    arrays = {f"rewards_{of_set}": x for of_set, x in rewards.items()}
    write_npz(_path(disk, name), arrays)


def _path(disk: Disk, name: str) -> pathlib.Path:
    return disk.folder(ITERATION) / f"rewards-{name}.npz"


def _measures(
    plan: RewardPlan, rewards: dict[str, Rewards], name: str
) -> dict[str, Any]:
    found = measure_sets(plan, rewards[name])
    if name == START:
        return found
    for of_set, values in found.items():
        ours, theirs = (
            rewards[model][of_set][:, CHOSEN] - rewards[model][of_set][:, REJECTED]
            for model in (name, START)
        )
        prompts = [row.group for row in plan.sets.tests[of_set]]
        gain = accuracy_gain(ours, theirs, prompts)
        values["gain"] = gain.mean
        if np.isfinite([gain.low, gain.high]).all():
            values |= {"gain/low": gain.low, "gain/high": gain.high}
    return found
