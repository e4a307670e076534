"""The reference of an iteration: weighted, merged, checked, and used once.

reference.json records the rule's weights and the merge's digest; the reference's
log-probabilities are kept under a key of contents (reference, data, tokenizer),
never of paths. Then the reference leaves memory.
"""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.data.table import Table, row_lengths, same_length, take
from tpmm_jax.errors import BadInput, CorruptCheckpoint, TpmmError
from tpmm_jax.hosts import index, once
from tpmm_jax.loop.cache import read_cache, write_cache
from tpmm_jax.loop.held_out import CachedPairs, held_out_pairs, pooled_iterations
from tpmm_jax.loop.log_probs import pair_table, table_log_probs
from tpmm_jax.loop.rollouts import IterationPairs
from tpmm_jax.loop.run import Disk, Plan
from tpmm_jax.loop.safety import refuse_log_probs, refuse_weights
from tpmm_jax.loop.voice import Voice
from tpmm_jax.losses import Batch, LossConfig, loss_at_zero
from tpmm_jax.merging import (
    FAINT,
    Deltas,
    HeldOut,
    MergeContext,
    choose,
    group_names,
    nothing_learned,
    one_hot_index,
    signal_to_rounding,
)
from tpmm_jax.mesh import fetch, fill, put_batch
from tpmm_jax.steps import pair_check_step
from tpmm_jax.store.digests import (
    is_finished,
    read_listed_json,
    remove_listed,
    write_listed_json,
)
from tpmm_jax.store.files import sha256
from tpmm_jax.store.fingerprint import tree_digest

# |D| in nats that policy = reference may show, by compute dtype: the log-probs and the
# loss come from two compiled programs, which may round differently.
SELF_CHECK_TOLERANCE = {"float32": 2e-3, "bfloat16": 1.0}
# Within one program, shifting or swapping is exact but for float32 sums.
SAME_PROGRAM_TOLERANCE = 1e-3
# How far a choice of weights has come, until it is recorded.
PROGRESS = "merge_progress.json"


def reference_log_probs(
    plan: Plan, disk: Disk, voice: Voice, iteration: int, pairs: IterationPairs
) -> np.ndarray | None:
    """Returns log p_ref of the training pairs, float32 [P, N] nats.

    Chooses and merges the reference if that is not done, checks it, and keeps the
    result in reference_logps.npz. None where the loss has no reference.
    """
    if plan.config.loss.reference_free:
        return None
    folder = disk.folder(iteration)
    record, cache = folder / "reference.json", folder / "reference_logps.npz"
    if is_finished(record) and is_finished(cache):
        key = cache_key(plan, pairs, read_listed_json(record)["digest"])
        if kept := read_cache(cache, key):
            return kept["logps_MN"]
    title = f"iteration {iteration}: reference log-probs"
    ld_alpha = plan.config.loss.ld_alpha
    chosen, started = is_finished(record), time.monotonic()
    reference = open_reference(plan, disk, voice, iteration)
    if not chosen:
        disk.log_seconds("merge", iteration, time.monotonic() - started)
    with disk.timed("reference", iteration):
        table = pair_table(plan.runner, pairs.train)
        total_PN = np.zeros((len(pairs.train), 2))
        for weight, load in reference.members:
            params = load()
            found = table_log_probs(plan.runner, voice, params, table, title, ld_alpha)
            refuse_log_probs(found, pairs.train, title)
            self_check(plan, params, table, found)
            del params
            total_PN += weight * found.astype(np.float64)
        logps_PN = total_PN.astype(np.float32)
        key = cache_key(plan, pairs, reference.digest)
        write_cache(cache, key, {"logps_MN": logps_PN})
    return logps_PN


def cache_key(plan: Plan, pairs: IterationPairs, digest: str) -> str:
    """Returns what the log-probs depend on, as text."""
    parts = {
        "reference": digest,
        "pairs": pairs.digest(),
        "tokenizer": plan.runner.codec.digest,
        "compute_dtype": plan.decoder.compute_dtype,
        "ld_alpha": plan.config.loss.ld_alpha,
    }
    return json.dumps(parts, sort_keys=True)


@dataclass(frozen=True)
class Reference:
    """What log p_ref is a weighted sum of.

    Attributes:
      digest: of the merged weights; of a mixture, of its weights and members.
      members: (weight, parameters): the merge alone, or the policies of a mixture.
    """

    digest: str
    members: list[tuple[float, Callable[[], Params]]]


def open_reference(plan: Plan, disk: Disk, voice: Voice, iteration: int) -> Reference:
    """Returns the reference; chooses it and writes reference.json if that is not done.

    Raises:
      CorruptCheckpoint: it is not what was recorded.
    """
    path = disk.folder(iteration) / "reference.json"
    known = read_listed_json(path) if is_finished(path) else None
    found = known or _choose(plan, disk, voice, iteration)
    # One machine may round otherwise than another: process 0's weights count.
    record = once(lambda: found, "weights of the reference")
    weights_GK = np.asarray(record["weights"], np.float64)
    # One-hot weights give that checkpoint, bit for bit.
    hot = one_hot_index(weights_GK)
    params: Params | None = None
    if hot is not None:
        params = disk.policy(hot)
    elif plan.config.reference.mix != "log_probs":
        params = disk.merge(weights_GK, _groups(plan))
    if params is None:
        ks = np.flatnonzero(weights_GK[0]).tolist()
        members: list[tuple[float, Callable[[], Params]]] = [
            (float(weights_GK[0, k]), functools.partial(disk.policy, k)) for k in ks
        ]
        digest = sha256([weights_GK.tolist(), [disk.trajectory.digest(k) for k in ks]])
    else:
        refuse_weights(params, f"the reference of iteration {iteration}")
        merged = params
        members, digest = [(1.0, lambda: merged)], tree_digest(merged)
    if record.get("digest", digest) != digest:
        raise CorruptCheckpoint(
            f"{path} records a reference of digest {record['digest']}, but its "
            f"weights now give {digest}: a checkpoint of {disk.workdir}/trajectory "
            "or the record was changed; restore it, or start a new workdir"
        )
    if "digest" not in record:
        ratio, dtype = None, plan.decoder.compute_dtype
        if hot != 0 and params is not None:
            ratio = signal_to_rounding(params, disk.policy(0), dtype)
        record |= {"digest": digest, "signal_to_rounding": ratio}
        _log_reference(plan, disk, voice, iteration, record)
        write_listed_json(path, record)
    # Also where a stop came between the two.
    remove_listed(disk.folder(iteration) / PROGRESS)
    return Reference(digest, members)


def _groups(plan: Plan) -> list[str]:
    """Returns the names of the weights' groups; one, unless layers are weighted."""
    config = plan.config.reference
    granularity = "layer" if config.layerwise else "model"
    return group_names(plan.decoder.abstract_params("float32"), granularity)


def _choose(plan: Plan, disk: Disk, voice: Voice, iteration: int) -> dict[str, Any]:
    """Returns the record of the rule's decision, without the merge's digest."""
    config, saved = plan.config.reference, disk.folder(iteration) / PROGRESS
    progress = read_listed_json(saved) if is_finished(saved) else None
    context = MergeContext(config, iteration, _groups(plan), progress=progress)
    disk.rewind("merge", iteration, progress["step"] if progress else 0)
    if iteration == 1 or not config.uses_holdout:
        weights_GK = choose(context)
    else:
        pairs = _held_out(plan, disk, voice, iteration)
        context.held_out = runnable(plan, pairs, iteration)
        if len(pairs.logps) > 1:
            normalized = config.length_normalized
            context.margins = pairs.margins(length_normalized=normalized)
        context.carried = _carried_logits(disk, iteration)
        # Of each process its own: it keeps the shards of its devices.
        scratch = disk.workdir / "scratch" / f"deltas-{index()}"
        with contextlib.ExitStack() as stack:

            @functools.cache
            def deltas() -> Deltas:
                found = Deltas(scratch, disk.policy, iteration, context.names)
                return stack.enter_context(found)

            context.deltas = deltas
            weights_GK = _choose_by_holdout(disk, voice, iteration, context)
        _say(voice, iteration, context.report)
    return {
        "rule": config.rule,
        "groups": context.names,
        "weights": weights_GK.tolist(),
        **context.report,
    }


def _choose_by_holdout(
    disk: Disk, voice: Voice, iteration: int, context: MergeContext
) -> np.ndarray:
    """Returns weights; logs the steps of learning, and saves some of them."""
    rule, saved = context.config.rule, disk.folder(iteration) / PROGRESS
    total = context.config.evaluations
    title = f"iteration {iteration}: {rule} reference"
    with voice.console.phase(title, total or 1, "steps") as bar:
        bar.advance(context.progress["step"] if context.progress else 0)

        def on_step(progress: dict[str, Any], row: dict[str, float]) -> None:
            step = progress["step"]
            disk.log.log("merge", iteration=iteration, step=step - 1, values=row)
            bar.advance(1, loss=f"{row['loss']:.4f}")
            often = context.config.fit == "exact" or step % 10 == 0
            if often or voice.stop.raised:
                write_listed_json(saved, progress, replace=True)
            voice.stop.check()

        context.on_step = on_step
        weights_GK = choose(context)
        if not total:
            bar.advance(1)
    return weights_GK


def _say(voice: Voice, iteration: int, report: Mapping[str, Any]) -> None:
    """Says which checkpoints a fit on margins left out, and whether it learned."""
    for k, why in report.get("left_out", {}).items():
        voice.console.warn(
            f"iteration {iteration}: theta_{k} is left out of the reference: {why}"
        )
    if why := nothing_learned(report):
        voice.console.note(f"iteration {iteration}: {why}; uniform weights are used")


def _carried_logits(disk: Disk, iteration: int) -> np.ndarray | None:
    path = disk.folder(iteration - 1) / "reference.json"
    logits = read_listed_json(path).get("logits") if path.exists() else None
    return None if logits is None else np.asarray(logits, np.float32)


def _held_out(plan: Plan, disk: Disk, voice: Voice, iteration: int) -> CachedPairs:
    """Returns the held-out pairs so far, with log-probs of the policies that are read.

    Raises:
      BadInput: there is none.
    """
    config = plan.config.reference
    window = config.holdout_window
    # Through the network, D is taken of merged models, against theta_0 alone.
    alone = config.rule == "learned" and not config.on_margins
    policies = range(1 if alone else iteration)
    pairs = held_out_pairs(
        plan, disk, voice, iteration, pooled_iterations(iteration, window), policies
    )
    if not pairs.rows:
        raise BadInput(
            f"iteration {iteration} has no held-out pair to weight checkpoints with; "
            "raise pairing.holdout_fraction or rollout.prompts_per_iteration, in a "
            "new --workdir"
        )
    return pairs


def runnable(plan: Plan, pairs: CachedPairs, iteration: int) -> HeldOut:
    """Returns the pairs as merged models are run on them."""
    runner, table = plan.runner, pair_table(plan.runner, pairs.rows)
    table["reference_BN"] = pairs.logps[0]
    return HeldOut(
        runner.decoder,
        plan.config.reference,
        table,
        fill(plan.mesh, min(runner.micro_batch, len(pairs.rows)), sides=2),
        plan.config.seed * 1009 + iteration,
        runner.pair_lengths,
    )


def _log_reference(
    plan: Plan, disk: Disk, voice: Voice, iteration: int, known: dict[str, Any]
) -> None:
    disk.rewind("reference", iteration)
    weights_GK = np.asarray(known["weights"])
    values: dict[str, Any] = {"reference/digest": known["digest"]}
    for k, weight in enumerate(weights_GK.mean(axis=0)):
        values[f"merge/weight_{k}"] = float(weight)
    ratio = known["signal_to_rounding"]
    if ratio is not None:
        values["merge/signal_to_rounding"] = ratio
        if ratio < FAINT:
            voice.console.warn(
                f"the reference differs from theta_0 by only {ratio:.1f} times the "
                f"rounding error of {plan.decoder.compute_dtype}"
            )
    disk.log.log("reference", iteration=iteration, step=None, values=values)


def self_check(plan: Plan, params: Params, table: Table, logps_PN: np.ndarray) -> None:
    """Refuses to train unless the loss is what it must be at known margins.

    With the reference's weights in the policy slot: |D| is within the dtype's
    tolerance; the loss with the reference's log-probs replaced by the policy's is its
    closed form; a reference shifted by +1 nat on the chosen side lowers D by 1; and
    swapping the pair then flips its sign.

    Raises:
      TpmmError: one of these does not hold.
    """
    config, dtype = plan.config.loss, plan.decoder.compute_dtype
    batch, size = _self_check_batch(plan, {**table, "reference_BN": logps_PN})

    def look(shift: float, swap: bool) -> tuple[np.ndarray, float]:
        margin_B, loss = pair_check_step(
            plan.decoder,
            config.objective(),
            params,
            batch,
            jnp.float32(shift),
            jnp.asarray(swap),
        )
        return fetch(margin_B)[:size], float(loss)

    margin_B, loss = look(0.0, False)
    shifted_B, swapped_B = look(1.0, False)[0], look(1.0, True)[0]
    zero = loss_at_zero(config.objective())
    assert zero is not None, "a loss without a reference has none to check"
    checks = {
        f"D is not 0 within {SELF_CHECK_TOLERANCE[dtype]} nats in {dtype}": (
            np.abs(margin_B),
            SELF_CHECK_TOLERANCE[dtype],
        ),
        f"the {config.title} loss at D = 0 is not {zero:.6f}": (
            np.abs(loss - zero),
            1e-5 * (1 + abs(zero)),
        ),
        "a reference shifted by 1 nat does not lower D by 1": (
            np.abs(shifted_B - (margin_B - 1)),
            SAME_PROGRAM_TOLERANCE,
        ),
        "swapping a pair does not flip the sign of D": (
            np.abs(swapped_B + shifted_B),
            SAME_PROGRAM_TOLERANCE,
        ),
    }
    for what, (error_B, tolerance) in checks.items():
        worst = float(np.max(error_B))
        if not worst <= tolerance:
            raise TpmmError(
                f"self-check failed with policy = reference: {what} (off by "
                f"{worst:.3g}); the reference's log-probs or the loss are wrong, so "
                "training is refused"
            )


def _self_check_batch(plan: Plan, table: Table) -> tuple[Batch, int]:
    """Returns pairs at the length of their log-probs, and how many they are."""
    micro, lengths = plan.runner.micro_batch, plan.runner.pair_lengths
    places, length = next(same_length(row_lengths(table), lengths, micro))
    table = {**table, **_no_margins(plan.config.loss, len(table["weight_B"]))}
    rows = take(table, places, fill(plan.mesh, micro, sides=2), [length])
    return put_batch(rows, plan.mesh), len(places)


def _no_margins(loss: LossConfig, pairs: int) -> Table:
    """Returns margins of 0, of which every weight is 1, where the loss needs some."""
    return {"margin_B": np.zeros(pairs, np.float32)} if loss.needs_margins else {}
