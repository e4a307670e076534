"""theta_t on the evaluation prompts and on held-out pairs.

Phases, each of which leaves a file and is not repeated: sampling with all scorers
(evaluation.jsonl, evaluation-SET.jsonl); log-probabilities, a model at a time
(log_probs.npz); judgements (judgements.jsonl); summary.json.
"""

import pathlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tpmm_jax.data.records import Judgement, PairRow, Rollout
from tpmm_jax.errors import BadInput
from tpmm_jax.evaluation import MAX_CUT, Evaluated, cut_warning, watch
from tpmm_jax.log.jsonl import plain, restored
from tpmm_jax.log.metrics import read_metrics
from tpmm_jax.loop.agreement import agreement
from tpmm_jax.loop.answers import LazyParams, sample_answers
from tpmm_jax.loop.cached_log_probs import (
    POLICY,
    REFERENCE,
    THETA_0,
    cached_log_probs,
    compared_models,
)
from tpmm_jax.loop.held_out import held_out_pairs
from tpmm_jax.loop.judging import (
    Contest,
    judge_contests,
    judge_wins,
    measure_contest,
    observe,
    preference_accuracy,
    unread_warning,
)
from tpmm_jax.loop.prompts import MAIN, SHIPPED
from tpmm_jax.loop.raters_record import earlier_labels
from tpmm_jax.loop.rollouts import CUT_OPTION, IterationPairs
from tpmm_jax.loop.run import EVALUATION, Disk, Plan
from tpmm_jax.loop.shipping import evaluate_mean, shipped_weights
from tpmm_jax.loop.voice import Voice
from tpmm_jax.merging import policy_is_reference
from tpmm_jax.scoring import measuring
from tpmm_jax.store.digests import (
    compact,
    is_finished,
    read_listed_json,
    write_listed_json,
    write_npz,
)
from tpmm_jax.store.records import read_records
from tpmm_jax.weights.kept import LAST

SUMMARY, RECORD = "summary.json", "reference.json"
# 1 in the rows of iterations whose pairs an earlier version of the scorer labelled.
EARLIER_LABELS = "labels/earlier_scorer"


def evaluate(
    plan: Plan, disk: Disk, voice: Voice, iteration: int, pairs: IterationPairs | None
) -> None:
    """Evaluates theta_iteration and writes summary.json and the iteration's row."""
    if not disk.is_evaluated(iteration):
        finish(disk, iteration, summarise(plan, disk, voice, iteration, pairs))


def finish(disk: Disk, iteration: int, values: Mapping[str, Any]) -> None:
    """Writes an iteration's row, in its place, and lists its rows as complete."""
    disk.rewind("iteration", iteration)
    disk.log.log("iteration", iteration=iteration, step=None, values=values)
    disk.log.flush()
    # Whatever was stopped and made again on the way, the list ends the same.
    compact(disk.folder(iteration))
    disk.log.finish(iteration)


def summarise(
    plan: Plan, disk: Disk, voice: Voice, iteration: int, pairs: IterationPairs | None
) -> dict[str, Any]:
    """Returns what summary.json holds; evaluates and writes it if it is missing."""
    path = disk.folder(iteration) / SUMMARY
    if is_finished(path) and not disk.lost(iteration):
        values = restored(read_listed_json(path))
    else:
        started = time.monotonic()
        held_out = [] if pairs is None else pairs.held_out
        # First, for it makes a record of the reference that went missing again.
        values = _evaluation(plan, disk, voice, iteration, held_out)
        if pairs is not None:
            values |= _training_summary(plan, disk, iteration, len(pairs.train))
            if plan.config.pairing.weights == "agreement" and iteration > 1:
                share_P = agreement(plan, disk, voice, iteration, pairs)
                values["pairs/agreement"] = float(share_P.mean())
        values |= shipped_weights(disk, iteration)
        if 0 < iteration <= earlier_labels(disk.workdir):
            values[EARLIER_LABELS] = 1
        disk.log_seconds("evaluation", iteration, time.monotonic() - started)
        plainly = {name: plain(name, value) for name, value in values.items()}
        write_listed_json(path, plainly)
    return values


def _evaluation(
    plan: Plan, disk: Disk, voice: Voice, t: int, held_out: Sequence[PairRow]
) -> dict[str, Any]:
    """Returns the measures of theta_t on every set and on held-out pairs."""
    policy = LazyParams(lambda: disk.policy(t))
    answers = sample_sets(plan, disk, voice, t, policy)
    logps: dict[str, np.ndarray] = {}
    if t > 0:
        logps = cached_log_probs(plan, disk, voice, t, answers, held_out, policy)
    values: dict[str, Any] = {}
    if held_out:
        values |= _held_out_summary(plan, disk, t, held_out, logps)
        values |= _surrogate(plan, disk, voice, t, logps)
    contests = [_contest(plan, disk, t, name, answers[name], logps) for name in answers]
    if t > 0 and plan.config.ship != LAST:
        met = met_by_mean(disk, t, answers)
        contests += filter(None, [evaluate_mean(plan, disk, voice, t, policy, met)])
    judged = disk.folder(t) / "judgements.jsonl"
    judgements = judge_contests(
        judged,
        contests,
        plan.raters.judges,
        batch_size=plan.runner.batch_size,
        voice=voice,
        title=f"iteration {t}: judge",
    )
    warnings: list[str] = []
    cuts: dict[str, float] = {}
    faults: dict[str, dict[str, float]] = {}
    for contest in contests:
        prefix = "" if contest.set == MAIN else f"{contest.set}/"
        found = measure_contest(contest, judgements, plan.runner.codec.eos_ids)
        on = "" if contest.set == MAIN else f" on {contest.set}"
        mean = f"the mean of theta_0 to theta_{t}"
        who = mean if contest.set == SHIPPED else f"theta_{t}{on}"
        if found["length/cut"] > MAX_CUT and voice.is_new(f"cut answers{on}"):
            cuts[f"evaluation of {who}"] = found["length/cut"]
        faults[who] = found
        if t == 0:
            found |= {"kl/theta_0": 0.0, "kl/theta_0/low": 0.0, "kl/theta_0/high": 0.0}
        values |= {prefix + key: value for key, value in found.items()}
        if contest.set == SHIPPED:
            continue
        history = _history(plan, disk, t, contest, judgements, found["kl/theta_0"])
        for text in watch(
            history,
            max_kl_per_token=plan.config.evaluation.max_kl_per_token,
            max_length_ratio=plan.config.evaluation.max_length_ratio,
            # Without the workdir, so that moved or repeated runs agree.
            look_at=str(answers_path(disk, t, contest.set).relative_to(disk.workdir)),
        ):
            warnings.append(text if contest.set == MAIN else f"{contest.set}: {text}")
    limit = plan.config.rollout.max_new_tokens
    unread = unread_warning(faults, str(judged.relative_to(disk.workdir)))
    if not (unread and voice.is_new("unread replies")):
        unread = ""
    for text in (*warnings, cut_warning(cuts, CUT_OPTION, limit), unread):
        if text:
            voice.console.warn(text)
    return values | ({"watch": warnings} if warnings else {})


def answers_path(disk: Disk, t: int, name: str) -> pathlib.Path:
    """Where the answers of theta_t to a set lie."""
    file = "evaluation.jsonl" if name == MAIN else f"evaluation-{name}.jsonl"
    return disk.folder(t) / file


def sample_sets(
    plan: Plan, disk: Disk, voice: Voice, t: int, policy: LazyParams
) -> dict[str, list[Rollout]]:
    """Returns theta_t's rated answers to each set; none without prompts."""
    if plan.schedule is None:
        return {}
    title = f"iteration {t}: evaluate" if t else "evaluate theta_0"
    return {
        name: sample_answers(
            plan.runner,
            voice,
            answers_path(disk, t, name),
            prompts,
            measuring(plan.raters),
            params=policy,
            # The same key for every policy: they are compared on equal noise.
            key=plan.key(0, EVALUATION),
            num_samples=plan.config.evaluation.samples_per_prompt,
            title=title if name == MAIN else f"{title} on {name}",
        )
        for name, prompts in plan.schedule.sets.items()
    }


def _held_out_summary(
    plan: Plan,
    disk: Disk,
    t: int,
    held_out: Sequence[PairRow],
    logps: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """theta_t against theta_0 on held-out pairs; writes held_out.npz."""
    names = [f"{model}_MN" for model in compared_models(plan)]
    arrays = {name: logps[f"held_out.{name}"].astype(np.float32) for name in names}
    write_npz(disk.folder(t) / "held_out.npz", arrays)
    return preference_accuracy(held_out, arrays["policy_MN"], arrays["theta_0_MN"])


def _surrogate(
    plan: Plan, disk: Disk, voice: Voice, t: int, logps: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """How far the merge's D is the weighted sum that its weights were fitted on."""
    config = plan.config.reference
    merged = config.on_margins and not config.layerwise and config.mix == "weights"
    if t < 2 or not merged:
        return {}
    normalized = config.length_normalized
    pairs = held_out_pairs(plan, disk, voice, t, [t], range(t))
    weights_GK = np.asarray(read_listed_json(disk.folder(t) / RECORD)["weights"])
    margin_PK = pairs.margins(length_normalized=normalized).margin_PK
    sum_P = margin_PK @ weights_GK[0, 1:]
    models = {0: logps[f"held_out.{THETA_0}_MN"], 1: logps[f"held_out.{REFERENCE}_MN"]}
    exact = replace(pairs, logps=models).margins(length_normalized=normalized)
    exact_P = exact.of(1)
    if len(sum_P) < 2 or not (np.ptp(sum_P) > 0 and np.ptp(exact_P) > 0):
        return {}
    return {"merge/surrogate": float(np.corrcoef(sum_P, exact_P)[0, 1])}


def _contest(
    plan: Plan,
    disk: Disk,
    t: int,
    name: str,
    answers: list[Rollout],
    logps: Mapping[str, np.ndarray],
) -> Contest:
    """Returns theta_t's answers to a set with those of theta_0 and theta_{t-1}."""
    if t == 0:
        return Contest(name, answers)
    policy_BR = logps[f"{name}.{POLICY}_BS"]
    ratios = {
        model: policy_BR - logps[f"{name}.{model}_BS"]
        for model in compared_models(plan)
        # Of a mixture log p is known up to a constant of the prompt.
        if model != POLICY and f"{name}.{model}_BS" in logps
    }
    return Contest(name, answers, opponents(disk, t, name), ratios)


def opponents(disk: Disk, t: int, name: str) -> dict[str, list[Rollout]]:
    """Returns the answers that those of theta_t to a set meet, t above 0."""
    first = _read_earlier(disk, 0, name)
    # At t = 1 both are theta_0: it is judged once.
    previous = first if t == 1 else _read_earlier(disk, t - 1, name)
    return {THETA_0: first, "previous": previous}


def met_by_mean(
    disk: Disk, t: int, answers: Mapping[str, list[Rollout]]
) -> dict[str, list[Rollout]]:
    """Returns the answers that those of the mean meet: of theta_0 and of theta_t."""
    if MAIN not in answers:
        return {}
    return {THETA_0: opponents(disk, t, MAIN)[THETA_0], POLICY: answers[MAIN]}


def _read_earlier(disk: Disk, t: int, name: str) -> list[Rollout]:
    """Returns the answers of an earlier policy, as they were written then."""
    path = answers_path(disk, t, name)
    answers = read_records(path, Rollout) if path.exists() else []
    if not answers:
        raise BadInput(
            f"{path} is missing or empty: win rates against theta_{t} need it; put it "
            f"back, or run `tpmm repair {disk.workdir} --evaluate {t}` to evaluate it "
            "again"
        )
    return answers


def _history(
    plan: Plan,
    disk: Disk,
    t: int,
    contest: Contest,
    judgements: Sequence[Judgement],
    kl: float,
) -> list[Evaluated]:
    """Returns what the watch sees of theta_0 to theta_t on one set."""
    name, judges, history = contest.set, plan.raters.judges, []
    key = "kl/theta_0" if name == MAIN else f"{name}/kl/theta_0"
    met = contest.opponents
    known = {0: met.get(THETA_0), t - 1: met.get("previous")}
    for s in range(t):
        path = disk.folder(s) / "judgements.jsonl"
        then = read_records(path, Judgement) if path.exists() else []
        values = restored(read_listed_json(disk.folder(s) / "summary.json"))
        history.append(
            observe(
                f"iteration {s}" if s else THETA_0,
                known.get(s) or _read_earlier(disk, s, name),
                judge_wins(then, name, THETA_0),
                judges,
                values.get(key),
            )
        )
    wins = judge_wins(judgements, name, THETA_0)
    own = f"iteration {t}" if t else THETA_0
    return [*history, observe(own, contest.answers, wins, judges, kl)]


def _training_summary(
    plan: Plan, disk: Disk, iteration: int, num_pairs: int
) -> dict[str, Any]:
    """What the iteration's table says of its training: the last epoch's means."""
    log = read_metrics(disk.workdir)
    rows = [r for r in log if r["kind"] == "train" and r["iteration"] == iteration]
    last = rows[-max(1, len(rows) // plan.config.train.epochs) :]
    values: dict[str, Any] = {
        "merge/rule": plan.config.reference.rule,
        "pairs": num_pairs,
    }
    for name in ("loss", "rewards/margins", "rewards/accuracies"):
        values[name] = float(np.mean([row[name] for row in last]))
    if apart := _away_from_reference(plan, disk, iteration, last):
        known = [row["rewards/accuracies"] for row in apart]
        values["pairs/train_accuracy"] = float(np.mean(known))
    if rows and (clamped := "beta_dpo/clamped") in rows[0]:
        # Over all steps: how often beta was held at its lower bound.
        values[clamped] = float(np.mean([row[clamped] for row in rows]))
    for row in log:
        if row["iteration"] == iteration and row["kind"] in ("pairs", "reference"):
            values |= {k: v for k, v in row.items() if "/" in k and "digest" not in k}
    return values


def _away_from_reference(
    plan: Plan, disk: Disk, t: int, rows: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Returns the steps that did not begin with the policy as its own reference."""
    if plan.config.loss.reference_free:
        return list(rows)
    config = plan.config.reference
    weights_GK = np.asarray(read_listed_json(disk.folder(t) / RECORD)["weights"])
    resets = config.rule == "trust_region" and config.trust_region_alpha == 1
    every = config.trust_region_tau if resets else None
    start = plan.config.train_from
    return [
        r for r in rows if not policy_is_reference(weights_GK, r["step"], every, start)
    ]
