"""theta_t on the evaluation prompts and on held-out pairs.

Phases, each of which leaves a file and is not repeated: sampling with all scorers
(evaluation.jsonl, evaluation-SET.jsonl); log-probabilities, a model at a time
(log_probs.npz); judgements (judgements.jsonl); summary.json.
"""

import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from tpmm_jax.axes import CHOSEN, REJECTED
from tpmm_jax.data.records import Judgement, PairRow, Rollout
from tpmm_jax.errors import BadInput
from tpmm_jax.evaluation import (
    Evaluated,
    accuracy_interval,
    measure,
    named,
    watch,
)
from tpmm_jax.evaluation.measures import score_arrays
from tpmm_jax.log.jsonl import plain, restored
from tpmm_jax.log.metrics import read_metrics
from tpmm_jax.loop.answers import Loaded, sample_answers
from tpmm_jax.loop.judging import Match, judge_matches, judge_wins
from tpmm_jax.loop.log_probs import (
    MAIN,
    POLICY,
    THETA_0,
    compared,
    evaluation_log_probs,
)
from tpmm_jax.loop.rollouts import IterationPairs
from tpmm_jax.loop.run import EVALUATION, Run
from tpmm_jax.store.files import read_json, write_json, write_npz
from tpmm_jax.store.records import read_records

# A policy's number and a set of prompts.
Place: TypeAlias = tuple[int, str]


def evaluate(run: Run, iteration: int, pairs: IterationPairs | None) -> None:
    """Evaluates theta_iteration and writes summary.json and the iteration's row."""
    path = run.folder(iteration) / "summary.json"
    if path.exists():
        values = restored(read_json(path))
    else:
        started = time.monotonic()
        values = _training_summary(run, iteration, pairs)
        values |= _evaluation(run, iteration, [] if pairs is None else pairs.held_out)
        seconds = {"seconds": time.monotonic() - started}
        run.log.log_timing("evaluation", iteration=iteration, step=None, values=seconds)
        write_json(path, {name: plain(name, value) for name, value in values.items()})
    run.rewind("iteration", iteration)
    run.log.log("iteration", iteration=iteration, step=None, values=values)
    run.log.flush()


def _evaluation(run: Run, t: int, held_out: Sequence[PairRow]) -> dict[str, Any]:
    """Returns the measures of theta_t on every set and on held-out pairs."""
    policy = Loaded(lambda: run.policy(t))
    answers = _answers(run, t, policy)
    logps = evaluation_log_probs(run, t, answers, held_out, policy) if t > 0 else {}
    values: dict[str, Any] = {}
    if held_out:
        values |= _held_out_summary(run, t, held_out, logps)
    # The two that win rates are against: read once for judges, measures and watch.
    earlier = {
        (s, name): _earlier(run, s, name)
        for name in answers
        for s in ({0, t - 1} if t > 0 else ())
    }
    judgements = _judgements(run, t, answers, earlier)
    warnings: list[str] = []
    for name, rows in answers.items():
        prefix = "" if name == MAIN else f"{name}/"
        found = _measures(run, t, name, rows, logps, judgements, earlier)
        values |= {prefix + key: value for key, value in found.items()}
        kl = found["kl/theta_0"]
        history = _history(run, t, name, rows, judgements, earlier, kl)
        warnings += [
            text if name == MAIN else f"{name}: {text}"
            for text in watch(
                history,
                max_kl_per_token=run.config.evaluation.max_kl_per_token,
                max_length_ratio=run.config.evaluation.max_length_ratio,
                # Without the workdir, so that moved or repeated runs agree.
                look_at=str(_path(run, t, name).relative_to(run.workdir)),
            )
        ]
    for text in warnings:
        run.console.warn(text)
    return values | ({"watch": warnings} if warnings else {})


def _path(run: Run, t: int, name: str) -> pathlib.Path:
    """Where the answers of theta_t to a set lie."""
    file = "evaluation.jsonl" if name == MAIN else f"evaluation-{name}.jsonl"
    return run.folder(t) / file


def _answers(run: Run, t: int, policy: Loaded) -> dict[str, list[Rollout]]:
    """Returns theta_t's rated answers to each set; none without prompts."""
    if run.schedule is None:
        return {}
    title = f"iteration {t}: evaluate" if t else "evaluate theta_0"
    sets = {MAIN: run.schedule.evaluation, **run.schedule.sets}
    return {
        name: sample_answers(
            run.runner,
            _path(run, t, name),
            prompts,
            run.raters,
            params=policy,
            # The same key for every policy: they are compared on equal noise.
            key=run.key(0, EVALUATION),
            num_samples=run.config.evaluation.samples_per_prompt,
            title=title if name == MAIN else f"{title} on {name}",
        )
        for name, prompts in sets.items()
    }


def _held_out_summary(
    run: Run, t: int, held_out: Sequence[PairRow], logps: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """theta_t against theta_0 on held-out pairs; writes held_out.npz."""
    names = [f"{model}_MN" for model in compared(run)]
    arrays = {name: logps[f"held_out.{name}"].astype(np.float32) for name in names}
    write_npz(run.folder(t) / "held_out.npz", arrays)
    return preference_accuracy(held_out, arrays["policy_MN"], arrays["theta_0_MN"])


def preference_accuracy(
    pairs: Sequence[PairRow], policy_MN: np.ndarray, anchor_MN: np.ndarray
) -> dict[str, float]:
    """Returns how often, and by how much, a policy prefers what is chosen.

    Args:
      pairs: M pairs; those of one prompt count together in the interval.
      policy_MN, anchor_MN: log-probs of (chosen, rejected), nats: of the policy, and
        of the one that it is measured against.
    """
    ratios_MN = policy_MN.astype(np.float64) - anchor_MN
    margin_M = ratios_MN[:, CHOSEN] - ratios_MN[:, REJECTED]
    prompts = [tuple(pair.prompt_ids) for pair in pairs]
    accuracy = accuracy_interval(margin_M, prompts)
    margin = {"heldout/margin": float(np.mean(margin_M))}
    return named("heldout/accuracy", accuracy) | margin


def _judgements(
    run: Run,
    t: int,
    answers: Mapping[str, list[Rollout]],
    earlier: Mapping[Place, list[Rollout]],
) -> list[Judgement]:
    """Returns every judge's verdict on theta_t against theta_0 and theta_{t-1}."""
    if t == 0 or not answers or not run.raters.judges:
        return []
    # At t = 1 both are theta_0: it is judged once.
    others = {THETA_0: 0, **({"previous": t - 1} if t > 1 else {})}
    matches = [
        Match(name, against, rows, earlier[step, name])
        for name, rows in answers.items()
        for against, step in others.items()
    ]
    return judge_matches(
        run.folder(t) / "judgements.jsonl",
        matches,
        run.raters.judges,
        batch_size=run.config.rollout.batch_size,
        console=run.console,
        check=run.stop.check,
        title=f"iteration {t}: judge",
    )


def _earlier(run: Run, t: int, name: str) -> list[Rollout]:
    """Returns the answers of an earlier policy, as they were written then."""
    path = _path(run, t, name)
    rows = read_records(path, Rollout)
    if not rows:
        raise BadInput(
            f"{path} is missing or empty: win rates against theta_{t} need it; put it "
            f"back, or delete {run.folder(t) / 'summary.json'} to evaluate it anew"
        )
    return rows


def _measures(
    run: Run,
    t: int,
    name: str,
    rows: list[Rollout],
    logps: Mapping[str, np.ndarray],
    judgements: list[Judgement],
    earlier: Mapping[Place, list[Rollout]],
) -> dict[str, float]:
    if t == 0:
        zero = {"kl/theta_0": 0.0, "kl/theta_0/low": 0.0, "kl/theta_0/high": 0.0}
        return measure(rows) | zero
    judged = judge_wins(judgements, name)
    if t == 1:
        judged |= {(label, "previous"): x for (label, _), x in judged.items()}
    policy_BS = logps[f"{name}.{POLICY}_BS"]
    return measure(
        rows,
        opponents={
            THETA_0: earlier[0, name],
            "previous": earlier[t - 1, name],
        },
        log_ratios={
            model: policy_BS - logps[f"{name}.{model}_BS"]
            for model in compared(run)
            if model != POLICY
        },
        judged=judged,
    )


def _history(
    run: Run,
    t: int,
    name: str,
    rows: list[Rollout],
    judgements: list[Judgement],
    earlier: Mapping[Place, list[Rollout]],
    kl: float,
) -> list[Evaluated]:
    """Returns what the watch sees of theta_0 to theta_t on one set."""
    key = "kl/theta_0" if name == MAIN else f"{name}/kl/theta_0"
    history = []
    for s in range(t + 1):
        judged = judge_wins(judgements if s == t else _judged_then(run, s), name)
        values = {key: kl} if s == t else _summary(run, s)
        history.append(
            seen(
                f"iteration {s}" if s else THETA_0,
                rows if s == t else earlier.get((s, name)) or _earlier(run, s, name),
                {
                    label: x
                    for (label, against), x in judged.items()
                    if against == THETA_0
                },
                run.raters.judges,
                values.get(key),
            )
        )
    return history


def _summary(run: Run, t: int) -> dict[str, Any]:
    return restored(read_json(run.folder(t) / "summary.json"))


def _judged_then(run: Run, t: int) -> list[Judgement]:
    return read_records(run.folder(t) / "judgements.jsonl", Judgement)


def seen(
    name: str,
    rows: list[Rollout],
    judged: Mapping[str, np.ndarray],
    judges: Iterable[str],
    kl: float | None,
    same_tokens: bool = True,
) -> Evaluated:
    """Returns what the watch sees of a policy.

    Args:
      rows: its answers.
      judged: by judge its wins [B, S] against the first policy. That one itself has
        none: it wins half of the time.
      judges: labels of all judges.
      kl: to the first policy, nats a response.
      same_tokens: whether lengths can be compared with the first policy's.
    """
    arrays = score_arrays(rows)
    half_BS = np.full((len(rows), len(rows[0].responses)), 0.5)
    independent = {f"scorer {k.split('/')[1]}": x for k, x in arrays.items() if k}
    independent |= {f"judge {label}": judged.get(label, half_BS) for label in judges}
    lengths = [len(ids) for row in rows for ids in row.response_ids]
    length = float(np.mean(lengths)) if same_tokens else None
    return Evaluated(name, arrays.get(""), length, kl, independent)


def _training_summary(
    run: Run, iteration: int, pairs: IterationPairs | None
) -> dict[str, Any]:
    """What the iteration's table says of its training: the last epoch's means."""
    if pairs is None:
        return {}
    log = read_metrics(run.workdir)
    rows = [r for r in log if r["kind"] == "train" and r["iteration"] == iteration]
    last = rows[-max(1, len(rows) // run.config.train.epochs) :]
    values: dict[str, Any] = {
        "merge/rule": run.config.reference.rule,
        "pairs": len(pairs.train),
    }
    for name in ("loss", "rewards/margins", "rewards/accuracies"):
        values[name] = float(np.mean([row[name] for row in last]))
    if rows and (clamped := "beta_dpo/clamped") in rows[0]:
        # Over all steps: how often beta was held at its lower bound.
        values[clamped] = float(np.mean([row[clamped] for row in rows]))
    for row in log:
        if row["iteration"] == iteration and row["kind"] in ("pairs", "reference"):
            values |= {k: v for k, v in row.items() if "/" in k and "digest" not in k}
    return values
