"""The policy that a run recommends: theta_t, or a mean of theta_0, ..., theta_t.

The mean is evaluated beside theta_t, on the same prompts with the same keys, as one
more set of the evaluation (SHIPPED). ship.json of an iteration says which of the two is
recommended; names of models read it (weights.kept.recommended).
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.data.records import Rollout
from tpmm_jax.hosts import once
from tpmm_jax.loop.answers import LazyParams, sample_answers
from tpmm_jax.loop.cache import read_cache, write_cache
from tpmm_jax.loop.held_out import CachedPairs, held_out_pairs, pooled_iterations
from tpmm_jax.loop.judging import Contest
from tpmm_jax.loop.log_probs import answer_log_probs
from tpmm_jax.loop.prompts import MAIN, SHIPPED, EncodedPrompts
from tpmm_jax.loop.raters_record import earlier_labels
from tpmm_jax.loop.run import EVALUATION, SHIPPING, Disk, Plan
from tpmm_jax.loop.voice import Voice
from tpmm_jax.merging import LEAST_PROMPTS, RatedSamples, fit_listwise, running_mean
from tpmm_jax.rewards import Raters
from tpmm_jax.scoring import measuring
from tpmm_jax.store.digests import (
    is_finished,
    read_listed_json,
    write_listed_json,
)
from tpmm_jax.store.files import sha256
from tpmm_jax.store.fingerprint import tree_digest
from tpmm_jax.store.records import read_records
from tpmm_jax.weights.kept import LAST, LEARNED, MEAN, SHIP, shares_of

# Of mean rewards: no gain.
ROUNDING = 1e-12


def mean_policy(disk: Disk, weights: Mapping[int, float]) -> Params:
    """Returns a mean of policies, float32; of LoRA that of products."""
    return running_mean((disk.policy(k) for k in weights), weights.values())


def evaluate_mean(
    plan: Plan,
    disk: Disk,
    voice: Voice,
    t: int,
    policy: LazyParams,
    met: Mapping[str, Sequence[Rollout]],
) -> Contest | None:
    """Returns the mean's answers with those that they meet; None without prompts.

    Writes ship.json.

    Args:
      met: the answers of others to the run's own prompts, by name.
    """
    record, name = disk.folder(t) / SHIP, plan.config.ship
    fitted: dict[str, Any] = {}
    if name == LEARNED:
        fitted = fit_weights(plan, disk, voice, t, record)
    weights = shares_of(fitted, t)
    mean = LazyParams(lambda: mean_policy(disk, weights))
    contest = None
    if plan.schedule is not None and MAIN in plan.schedule.sets:
        prompts, title = plan.schedule.sets[MAIN], "evaluate the mean"
        answers = _sample(
            plan, disk, voice, t, SHIPPED, title, prompts, mean, EVALUATION
        )
        ratios = {"theta_0": _log_ratios(plan, disk, voice, t, answers, mean, weights)}
        contest = Contest(SHIPPED, answers, met, ratios)
    auto = name == "auto"
    needed = [record, *(_answers(disk, t, x) for x in (LAST, MEAN) if auto)]
    if not all(map(is_finished, needed)):
        digest, report = tree_digest(mean()), fitted
        chosen: str = name
        if auto:
            chosen, report = _choose(plan, disk, voice, t, policy, mean)
            said = "the mean" if chosen == MEAN else f"theta_{t}"
            voice.console.note(
                f"iteration {t}: ships {said}; held-out reward of the mean minus that "
                f"of theta_{t}: {report['gain_of_mean']:+.3f}, standard error "
                f"{report['gain_error']:.3f}"
            )
        write_listed_json(record, {"chosen": chosen, "mean": digest, **report})
    mean.release()
    return contest


def shipped_weights(disk: Disk, t: int) -> dict[str, float]:
    """Returns ship/weight_0, ... where they were learned."""
    record = disk.folder(t) / SHIP
    weights = read_listed_json(record).get("weights", ()) if record.exists() else ()
    return {f"{SHIPPED}/weight_{k}": weight for k, weight in enumerate(weights)}


def fit_weights(
    plan: Plan, disk: Disk, voice: Voice, t: int, record: pathlib.Path
) -> dict[str, Any]:
    """Returns the weights of theta_0 to theta_t, and how they were found."""
    if is_finished(record):
        return read_listed_json(record)
    pooled = pooled_iterations(t, plan.config.reference.holdout_window)
    # Of one version of the scorer.
    iterations = [h for h in pooled if h > earlier_labels(disk.workdir)]
    pairs = held_out_pairs(plan, disk, voice, t, iterations, range(t + 1))
    rollouts = [
        (h, row)
        for h in iterations
        for row in read_records(disk.folder(h) / "rollouts.jsonl", Rollout)
        if row.held_out
    ]
    fitted = fit_listwise(rated_samples(rollouts, pairs)).record()
    found = once(lambda: fitted, "weights of what is shipped")
    if not found["learned"]:
        why = "held-out samples did not show a better mean than the plain one"
        if found["held_out_prompts"] < LEAST_PROMPTS:
            count = found["held_out_prompts"]
            why = (
                f"{count} held-out prompts with different rewards are too few to "
                "weight policies with"
            )
        voice.console.note(f"iteration {t}: {why}; the plain mean is shipped")
    return found


def rated_samples(
    rollouts: Sequence[tuple[int, Rollout]], pairs: CachedPairs
) -> RatedSamples:
    """Returns the samples of held-out prompts of which some have different rewards.

    Args:
      rollouts: each with its iteration; the policy before that drew the answers.
      pairs: of these answers, with log-probs of all policies.
    """
    logps_PNK = np.stack([some for _, some in sorted(pairs.logps.items())], axis=-1)
    known = {
        (tuple(row.prompt_ids), tuple(ids)): logps_K
        for row, logps_NK in zip(pairs.rows, logps_PNK, strict=True)
        for ids, logps_K in zip((row.chosen_ids, row.rejected_ids), logps_NK)
    }
    # Where all answers to a prompt are rated alike, none is in a pair.
    kept = [
        (h, row, [known[tuple(row.prompt_ids), tuple(ids)] for ids in row.response_ids])
        for h, row in rollouts
        if all((tuple(row.prompt_ids), tuple(x)) in known for x in row.response_ids)
    ]
    most = max((len(row.responses) for _, row, _ in kept), default=1)
    logp_PRK = np.zeros((len(kept), most, logps_PNK.shape[-1]))
    reward_PR = np.full((len(kept), most), np.nan)
    sampler_PR = np.zeros((len(kept), most))
    for p, (h, row, logps_RK) in enumerate(kept):
        count = len(logps_RK)
        logp_PRK[p, :count], reward_PR[p, :count] = logps_RK, row.rewards
        sampler_PR[p, :count] = logp_PRK[p, :count, h - 1]
    prompts = [tuple(row.prompt_ids) for _, row, _ in kept]
    return RatedSamples(logp_PRK, sampler_PR, reward_PR, prompts)


def _answers(disk: Disk, t: int, name: str) -> pathlib.Path:
    """Where the answers to held-out prompts lie, of theta_t or of the mean."""
    return disk.folder(t) / f"evaluation-{SHIPPED}-{name}.jsonl"


def _sample(
    plan: Plan,
    disk: Disk,
    voice: Voice,
    t: int,
    name: str,
    title: str,
    prompts: EncodedPrompts,
    params: Callable[[], Params],
    purpose: int,
) -> list[Rollout]:
    """Returns answers of theta_t or of the mean, on the same noise."""
    evaluates = purpose == EVALUATION
    settings = plan.config.evaluation if evaluates else plan.config.rollout
    return sample_answers(
        plan.runner,
        voice,
        disk.folder(t) / f"evaluation-{name}.jsonl",
        prompts,
        measuring(plan.raters) if evaluates else Raters(plan.raters.scorer),
        params=params,
        key=plan.key(0 if evaluates else t, purpose),
        num_samples=settings.samples_per_prompt,
        title=f"iteration {t}: {title}",
    )


def _log_ratios(
    plan: Plan,
    disk: Disk,
    voice: Voice,
    t: int,
    answers: Sequence[Rollout],
    mean: LazyParams,
    weights: Mapping[int, float],
) -> np.ndarray:
    """Returns log p(answer) of the mean minus that of theta_0, nats, [B, R]."""
    path = disk.folder(t) / "ship_log_probs.npz"
    texts = [[row.prompt_ids, row.response_ids] for row in answers]
    members = [[disk.trajectory.digest(k), weight] for k, weight in weights.items()]
    key = sha256([texts, members, plan.runner.codec.digest])
    known = read_cache(path, key)
    first = LazyParams(lambda: disk.policy(0))
    for name, params in (("mean", mean), ("theta_0", first)):
        if name not in known:
            title = f"iteration {t}: log-probs of {name}, the mean's answers"
            known[name] = answer_log_probs(plan.runner, voice, params(), answers, title)
            write_cache(path, key, known)
        params.release()
    return known["mean"] - known["theta_0"]


def _choose(
    plan: Plan,
    disk: Disk,
    voice: Voice,
    t: int,
    policy: LazyParams,
    mean: LazyParams,
) -> tuple[str, dict[str, Any]]:
    """Returns the better on held-out prompts; theta_t within one standard error.

    The evaluation's prompts choose nothing, so that they report the choice as it is.
    """
    assert plan.schedule is not None
    prompts = held_out_prompts(plan.schedule.iteration(t))
    rewards = []
    # The mean first, which is in memory already; one policy at a time.
    for name, params in ((MEAN, mean), (LAST, policy)):
        title = f"{'the mean' if name == MEAN else f'theta_{t}'} on held-out prompts"
        label = f"{SHIPPED}-{name}"
        rows = _sample(plan, disk, voice, t, label, title, prompts, params, SHIPPING)
        params.release()
        rewards.append(np.asarray([row.rewards for row in rows], np.float64))
    gain_B = (rewards[0] - rewards[1]).mean(axis=1)
    gain, error = float(gain_B.mean()), float(gain_B.std(ddof=1) / len(gain_B) ** 0.5)
    return MEAN if gain > max(error, ROUNDING) else LAST, {
        "held_out_prompts": len(gain_B),
        "gain_of_mean": gain,
        "gain_error": error,
        "rewards": {MEAN: float(rewards[0].mean()), LAST: float(rewards[1].mean())},
    }


def rated_prompts(plan: Plan, t: int) -> dict[str, EncodedPrompts]:
    """Returns the prompts of answers that are rated beside theta_t's, by set."""
    if plan.schedule is None or plan.config.ship == LAST or t == 0:
        return {}
    found = {SHIPPED: plan.schedule.sets[MAIN]}
    if plan.config.ship == "auto":
        prompts = held_out_prompts(plan.schedule.iteration(t))
        found |= {f"{SHIPPED}-{name}": prompts for name in (LAST, MEAN)}
    return found


def held_out_prompts(prompts: EncodedPrompts) -> EncodedPrompts:
    """Returns those of an iteration's prompts that train nothing."""
    kept = [i for i, held_out in enumerate(prompts.held_out) if held_out]
    lists = {
        f.name: [getattr(prompts, f.name)[i] for i in kept]
        for f in dataclasses.fields(prompts)
        if f.name != "columns"
    }
    columns = {k: [x[i] for i in kept] for k, x in prompts.columns.items()}
    return EncodedPrompts(**lists, columns=columns)
