"""The reference of an iteration: weighed, merged, checked, and used once.

reference.json records the rule's weights and the merge's digest; the reference's
log-probabilities are kept under a key of contents (reference, data, tokenizer),
never of paths. Then the reference leaves memory.
"""

import contextlib
import json
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.data.batches import collate
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.table import Table, take
from tpmm_jax.errors import BadInput, CorruptCheckpoint, TpmmError
from tpmm_jax.loop.answers import pair_log_probs
from tpmm_jax.loop.rollouts import IterationPairs, read_pairs
from tpmm_jax.loop.run import Run
from tpmm_jax.loop.safety import refuse_log_probs, refuse_weights
from tpmm_jax.losses import loss_at_zero
from tpmm_jax.merging import (
    FAINT,
    Deltas,
    HeldOut,
    MergeContext,
    choose,
    group_names,
    one_hot_index,
    signal_to_rounding,
)
from tpmm_jax.mesh import put_batch
from tpmm_jax.steps import pair_check_step
from tpmm_jax.store.files import read_json, write_json, write_npz
from tpmm_jax.store.fingerprint import tree_digest

# |D| in nats that policy = reference may show, by compute dtype: the log-probs and the
# loss come from two compiled programs, which may round differently.
SELF_CHECK_TOLERANCE = {"float32": 2e-3, "bfloat16": 1.0}
# Within one program, shifting or swapping is exact but for float32 sums.
SAME_PROGRAM_TOLERANCE = 1e-3
# How far a choice of weights has come, until it is recorded.
PROGRESS = "merge_progress.json"


def pair_table(run: Run, rows: list[PairRow]) -> Table:
    """Returns the arrays of pairs, padded to the run's length."""
    return collate(rows, length=run.pair_length, pad_id=run.codec.pad_id)


def reference_log_probs(
    run: Run, iteration: int, pairs: IterationPairs
) -> np.ndarray | None:
    """Returns log p_ref of the training pairs, float32 [M, N] nats.

    Chooses and merges the reference if that is not done, checks it, and keeps the
    result in reference_logps.npz. None where the loss knows no reference.
    """
    if run.config.loss.reference_free:
        return None
    folder = run.folder(iteration)
    record, cache = folder / "reference.json", folder / "reference_logps.npz"
    if record.exists() and cache.exists():
        key = cache_key(run, pairs, read_json(record)["digest"])
        found = _read_cache(cache, key)
        if found is not None:
            return found
    with merged_reference(run, iteration) as (params, digest):
        table = pair_table(run, pairs.train)
        logps_MN = table_log_probs(
            run,
            params,
            table,
            "reference log-probs",
            iteration,
            rows=pairs.train,
            ld_alpha=run.config.loss.ld_alpha,
        )
        self_check(run, params, table, logps_MN)
    key = cache_key(run, pairs, digest)
    write_npz(cache, {"logps_MN": logps_MN, "key": np.array(key)})
    return logps_MN


def cache_key(run: Run, pairs: IterationPairs, digest: str) -> str:
    """Returns what the log-probs depend on, as text."""
    parts = {
        "reference": digest,
        "pairs": pairs.digest(),
        "tokenizer": run.codec.digest,
        "compute_dtype": run.decoder.compute_dtype,
        "ld_alpha": run.config.loss.ld_alpha,
    }
    return json.dumps(parts, sort_keys=True)


def _read_cache(path: pathlib.Path, key: str) -> np.ndarray | None:
    try:
        with np.load(path) as file:
            return file["logps_MN"] if str(file["key"]) == key else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CorruptCheckpoint(
            f"{path}: {error}; delete it to compute it anew"
        ) from None


@contextlib.contextmanager
def merged_reference(run: Run, iteration: int) -> Iterator[tuple[Params, str]]:
    """Yields the reference's parameters and their digest; records reference.json."""
    config, count = run.config.reference, iteration
    record = run.folder(iteration) / "reference.json"
    structure = run.decoder.abstract_params("float32")
    granularity = config.granularity if config.rule == "learned" else "model"
    names = group_names(structure, granularity)
    known = read_json(record) if record.exists() else None
    hot = None if known is None else one_hot_index(np.asarray(known["weights"]))
    with contextlib.ExitStack() as stack:
        deltas = None
        merges = config.uses_holdout or config.rule in ("uniform", "ema")
        if count > 1 and merges and hot is None:
            scratch = run.workdir / "scratch" / "deltas"
            deltas = stack.enter_context(Deltas(scratch, run.policy, count, names))
        if known is None:
            known = _choose(run, iteration, names, deltas)
        weights_GK = np.asarray(known["weights"], np.float64)
        hot = one_hot_index(weights_GK)
        if hot is not None:
            params = run.policy(hot)
        else:
            assert deltas is not None
            params = deltas.merge(weights_GK)
        refuse_weights(params, f"the reference of iteration {iteration}")
        digest = tree_digest(params)
        if known.get("digest", digest) != digest:
            raise CorruptCheckpoint(
                f"{record} records a reference of digest {known['digest']}, but its "
                f"weights now give {digest}: a checkpoint of {run.workdir}/trajectory "
                "or the record was changed; restore it, or start a new workdir"
            )
        if "digest" not in known:
            ratio = _signal_to_rounding(run, params, hot)
            known |= {"digest": digest, "signal_to_rounding": ratio}
            _log_reference(run, iteration, known)
            write_json(record, known)
        # Also where a stop came between the two.
        (run.folder(iteration) / PROGRESS).unlink(missing_ok=True)
    yield params, digest


def _choose(
    run: Run, iteration: int, names: list[str], deltas: Deltas | None
) -> dict[str, Any]:
    """Returns the record of the rule's decision, without the merge's digest."""
    config, folder = run.config.reference, run.folder(iteration)
    saved = folder / PROGRESS
    progress = read_json(saved) if saved.exists() else None
    context = MergeContext(config, iteration, names, deltas=deltas, progress=progress)
    run.rewind("merge", iteration, progress["step"] if progress else 0)
    if deltas is None or not config.uses_holdout:
        weights_GK = choose(context)
    else:
        context.held_out = _held_out(run, iteration)
        context.carried = _carried_logits(run, iteration)
        total = config.steps if config.rule == "learned" else 1
        title = f"iteration {iteration}: {config.rule} reference"
        with run.console.phase(title, total, "steps") as bar:
            bar.advance(progress["step"] if progress else 0)

            def on_step(progress: dict[str, Any], row: dict[str, float]) -> None:
                run.log.log(
                    "merge", iteration=iteration, step=progress["step"] - 1, values=row
                )
                bar.advance(1, loss=f"{row['loss']:.4f}")
                if progress["step"] % 10 == 0 or run.stop.raised:
                    write_json(saved, progress)
                run.stop.check()

            context.on_step = on_step
            weights_GK = choose(context)
            if config.rule != "learned":
                bar.advance(1)
    return {
        "rule": config.rule,
        "groups": names,
        "weights": weights_GK.tolist(),
        **context.report,
    }


def _carried_logits(run: Run, iteration: int) -> np.ndarray | None:
    path = run.folder(iteration - 1) / "reference.json"
    logits = read_json(path).get("logits") if path.exists() else None
    return None if logits is None else np.asarray(logits, np.float32)


def _held_out(run: Run, iteration: int) -> HeldOut:
    """Returns the held-out pairs with their log-probs under theta_0."""
    config = run.config.reference
    first = 1 if config.earlier_holdouts else iteration
    rows = [r for t in range(first, iteration + 1) for r in read_pairs(run, t).held_out]
    if not rows:
        raise BadInput(
            f"iteration {iteration} has no held-out pair to weigh checkpoints with; "
            "raise pairing.holdout_fraction or rollout.prompts_per_iteration, in a "
            "new --workdir"
        )
    table = pair_table(run, rows)
    params = run.policy(0)
    anchor_MN = table_log_probs(
        run, params, table, "anchor log-probs", iteration, rows=rows
    )
    table["reference_BN"] = anchor_MN
    return HeldOut(
        run.decoder,
        config,
        table,
        min(run.micro_batch, len(rows)),
        run.chunk_bytes,
        run.config.seed * 1009 + iteration,
    )


def _signal_to_rounding(run: Run, params: Params, hot: int | None) -> float | None:
    """|merged - theta_0| over the rounding error of computing with the merge."""
    if hot == 0:
        return None
    return signal_to_rounding(params, run.policy(0), run.decoder.compute_dtype)


def _log_reference(run: Run, iteration: int, known: dict[str, Any]) -> None:
    run.rewind("reference", iteration)
    weights_GK = np.asarray(known["weights"])
    values: dict[str, Any] = {"reference/digest": known["digest"]}
    for k, weight in enumerate(weights_GK.mean(axis=0)):
        values[f"merge/weight_{k}"] = float(weight)
    ratio = known["signal_to_rounding"]
    if ratio is not None:
        values["merge/signal_to_rounding"] = ratio
        if ratio < FAINT:
            run.console.warn(
                f"the reference differs from theta_0 by only {ratio:.1f} times the "
                f"rounding error of {run.decoder.compute_dtype}"
            )
    run.log.log("reference", iteration=iteration, step=None, values=values)


def table_log_probs(
    run: Run,
    params: Params,
    table: Table,
    what: str,
    iteration: int,
    *,
    rows: Sequence[PairRow],
    ld_alpha: float | None = None,
) -> np.ndarray:
    """Returns log p(completion | prompt) of every pair, float32 [M, N] nats.

    Raises:
      NotFinite: one of them is infinite or no number; names the rows.
    """
    title = f"iteration {iteration}: {what}"
    logps_MN = pair_log_probs(run.runner, params, table, title, ld_alpha)
    refuse_log_probs(logps_MN, rows, title)
    return logps_MN


def self_check(run: Run, params: Params, table: Table, logps_MN: np.ndarray) -> None:
    """Refuses to train unless the loss is what it must be at known margins.

    With the reference's weights in the policy slot: |D| is within the dtype's
    tolerance; the loss with the reference's log-probs replaced by the policy's is its
    closed form; a reference shifted by +1 nat on the chosen side lowers D by 1; and
    swapping the pair then turns its sign.

    Raises:
      TpmmError: one of these does not hold.
    """
    config, dtype = run.config.loss, run.decoder.compute_dtype
    size = min(run.micro_batch, len(logps_MN))
    table = {**table, "reference_BN": logps_MN}
    batch = put_batch(take(table, np.arange(size), run.micro_batch), run.decoder.mesh)

    def look(shift: float, swap: bool) -> tuple[np.ndarray, float]:
        margin_B, loss = pair_check_step(
            run.decoder,
            config,
            params,
            batch,
            jnp.float32(shift),
            jnp.asarray(swap),
            chunk_bytes=run.chunk_bytes,
        )
        return np.asarray(margin_B)[:size], float(loss)

    margin_B, loss = look(0.0, False)
    shifted_B, swapped_B = look(1.0, False)[0], look(1.0, True)[0]
    zero = loss_at_zero(config)
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
        "swapping a pair does not turn D's sign": (
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
