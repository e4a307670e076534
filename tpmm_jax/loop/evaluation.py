"""theta_t on the evaluation prompts: reward with its interval, KL to theta_0."""

import time
from typing import Any

import numpy as np
import scipy.stats

from tpmm_jax.axes import CHOSEN, REJECTED, Params
from tpmm_jax.loop.reference import pair_table, table_log_probs
from tpmm_jax.loop.rollouts import IterationPairs, sampled_rows
from tpmm_jax.loop.run import EVALUATION, Run
from tpmm_jax.mesh import put_batch
from tpmm_jax.report.metrics import read_metrics
from tpmm_jax.steps import token_log_probs_step
from tpmm_jax.store.files import read_json, write_json


def evaluate(run: Run, iteration: int, pairs: IterationPairs | None) -> None:
    """Evaluates theta_iteration and writes summary.json and the iteration's row."""
    path = run.folder(iteration) / "summary.json"
    if path.exists():
        values = read_json(path)
    else:
        started = time.monotonic()
        values = _training_summary(run, iteration, pairs)
        if run.scorer is not None:
            values |= _reward_summary(run, iteration)
        elif pairs is not None:
            values |= _held_out_summary(run, iteration, pairs)
        seconds = {"seconds": time.monotonic() - started}
        run.log.log_timing("evaluation", iteration=iteration, step=None, values=seconds)
        write_json(path, values)
    run.rewind("iteration", iteration)
    run.log.log("iteration", iteration=iteration, step=None, values=values)
    run.log.flush()


def mean_interval(rewards_BS: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Returns Student's interval of the mean, clustered by prompt (rows)."""
    means_B = rewards_BS.mean(axis=1)
    if len(means_B) < 2:
        return float("-inf"), float("inf")
    half = scipy.stats.t.ppf((1 + level) / 2, len(means_B) - 1) * scipy.stats.sem(
        means_B
    )
    return float(means_B.mean() - half), float(means_B.mean() + half)


def _reward_summary(run: Run, iteration: int) -> dict[str, Any]:
    assert run.schedule is not None
    rows = sampled_rows(
        run,
        run.folder(iteration) / "evaluation.jsonl",
        run.schedule.evaluation,
        policy=iteration,
        # The same key for every policy: they are compared on equal noise.
        key=run.key(0, EVALUATION),
        num_samples=run.config.evaluation.samples_per_prompt,
        title=f"iteration {iteration}: evaluate" if iteration else "evaluate theta_0",
    )
    rewards_BS = np.asarray([row["rewards"] for row in rows])
    low, high = mean_interval(rewards_BS)
    lengths = [len(ids) for row in rows for ids in row["response_ids"]]
    values = {
        "reward/mean": float(rewards_BS.mean()),
        "reward/low": low,
        "reward/high": high,
        "length/mean": float(np.mean(lengths)),
    }
    # The mean of log p_t(y) - log p_0(y) over samples of p_t: the KL divergence where
    # they are drawn at temperature 1 from the whole vocabulary.
    values["kl/theta_0"] = 0.0
    if iteration > 0:
        policy = _response_log_probs(run, run.policy(iteration), rows)
        anchor = _response_log_probs(run, run.policy(0), rows)
        values["kl/theta_0"] = float(np.mean(policy - anchor))
    return values


def _response_log_probs(
    run: Run, params: Params, rows: list[dict[str, Any]]
) -> np.ndarray:
    """Returns log p(response | prompt), nats, of every sample of every row."""
    both = [(r["prompt_ids"], ids) for r in rows for ids in r["response_ids"]]
    size, out = 2 * run.micro_batch, []
    for first in range(0, len(both), size):
        some = both[first : first + size]
        tokens_BT = np.full((size, run.pair_length), run.pad_id, np.int32)
        mask_BT, of_response_BT = np.zeros_like(tokens_BT), np.zeros_like(tokens_BT)
        for b, (prompt, ids) in enumerate(some):
            end = len(prompt) + len(ids)
            tokens_BT[b, :end] = [*prompt, *ids]
            mask_BT[b, :end] = 1
            of_response_BT[b, len(prompt) : end] = 1
        batch = put_batch((tokens_BT, mask_BT), run.decoder.mesh)
        logp_BT = token_log_probs_step(
            run.decoder, params, *batch, chunk_bytes=run.chunk_bytes
        )
        of_response = np.asarray(logp_BT, np.float64) * of_response_BT[:, 1:]
        out.append(of_response.sum(axis=1)[: len(some)])
    return np.concatenate(out)


def _held_out_summary(
    run: Run, iteration: int, pairs: IterationPairs
) -> dict[str, Any]:
    """Offline without a scorer: theta_t against theta_0 on held-out pairs."""
    if not pairs.held_out:
        return {}
    table = pair_table(run, pairs.held_out)
    logps_MN = table_log_probs(run, run.policy(iteration), table, "evaluate", iteration)
    anchor_MN = table_log_probs(
        run, run.policy(0), table, "evaluate theta_0", iteration
    )
    ratios_MN = logps_MN - anchor_MN
    margin_M = ratios_MN[:, CHOSEN] - ratios_MN[:, REJECTED]
    return {
        "heldout/accuracy": float(np.mean((margin_M > 0) + 0.5 * (margin_M == 0))),
        "heldout/margin": float(np.mean(margin_M)),
    }


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
    for row in log:
        if row["iteration"] == iteration and row["kind"] in ("pairs", "reference"):
            values |= {k: v for k, v in row.items() if "/" in k and "digest" not in k}
    return values
