"""Log-probabilities of an evaluation: three models, one after the other."""

from collections.abc import Mapping, Sequence

import numpy as np

from tpmm_jax.data.records import PairRow, Rollout
from tpmm_jax.loop.answers import LazyParams
from tpmm_jax.loop.cache import read_cache, write_cache
from tpmm_jax.loop.held_out import kept_log_probs
from tpmm_jax.loop.log_probs import model_log_probs
from tpmm_jax.loop.reference import open_reference
from tpmm_jax.loop.run import Disk, Plan
from tpmm_jax.loop.voice import Voice
from tpmm_jax.merging import one_hot_index
from tpmm_jax.store.digests import is_finished, read_listed_json
from tpmm_jax.store.files import sha256

POLICY, THETA_0, REFERENCE = "policy", "theta_0", "reference"


def compared_models(plan: Plan) -> tuple[str, ...]:
    """Returns the models whose log-probs an evaluation needs."""
    free = plan.config.loss.reference_free
    return (POLICY, THETA_0) if free else (POLICY, THETA_0, REFERENCE)


def cached_log_probs(
    plan: Plan,
    disk: Disk,
    voice: Voice,
    t: int,
    answers: Mapping[str, Sequence[Rollout]],
    held_out: Sequence[PairRow],
    policy: LazyParams,
) -> dict[str, np.ndarray]:
    """Returns "SET.MODEL_BS" and "held_out.MODEL_MN" of the compared models, nats.

    A reference that is a mixture has the latter alone.

    One model is in memory at a time, and what is done is in log_probs.npz. With
    trust_region the reference is the one that the iteration began with.
    """
    path, models = disk.folder(t) / "log_probs.npz", compared_models(plan)
    weights = np.zeros((0, 0))
    if REFERENCE in models:
        record = disk.folder(t) / "reference.json"
        if not is_finished(record):
            open_reference(plan, disk, voice, t)
        weights = np.asarray(read_listed_json(record)["weights"])
    texts = [[r.prompt_ids, r.response_ids] for a in answers.values() for r in a]
    pairs = [[r.prompt_ids, r.chosen_ids, r.rejected_ids] for r in held_out]
    digests = [disk.trajectory.digest(step) for step in range(t + 1)]
    key = sha256([texts, pairs, digests, weights.tolist(), plan.runner.codec.digest])
    known = read_cache(path, key)
    lazy = {POLICY: policy, THETA_0: LazyParams(lambda: disk.policy(0))}

    def mixed() -> list[tuple[float, LazyParams]]:
        members = open_reference(plan, disk, voice, t).members
        return [(weight, LazyParams(load)) for weight, load in members]

    for model in models:
        if any(f".{model}_" in name for name in known):
            continue
        if model == REFERENCE and one_hot_index(weights) == 0:
            of_0 = [name for name in known if f".{THETA_0}_" in name]
            if plan.config.reference.mix == "log_probs":
                of_0 = [name for name in of_0 if name.startswith("held_out.")]
            known |= {n.replace(THETA_0, REFERENCE): known[n] for n in of_0}
        else:
            members = [(1.0, lazy[model])] if model in lazy else mixed()
            mixture = model == REFERENCE and plan.config.reference.mix == "log_probs"
            asked = {} if mixture else answers
            kept = None
            if model == THETA_0 and held_out:
                # Weights that were fitted may have asked for them already.
                kept = kept_log_probs(plan, disk, t, held_out, 0)
            own = held_out if kept is None else []
            known |= _compute(plan, voice, t, model, members, asked, own)
            if kept is not None:
                known[f"held_out.{model}_MN"] = kept
        write_cache(path, key, known)
    policy.release()
    return known


def _compute(
    plan: Plan,
    voice: Voice,
    t: int,
    model: str,
    members: Sequence[tuple[float, LazyParams]],
    answers: Mapping[str, Sequence[Rollout]],
    held_out: Sequence[PairRow],
) -> dict[str, np.ndarray]:
    """Returns the weighted sum of the log-probs of a model's members."""
    title, known = f"iteration {t}: log-probs of {model}", dict[str, np.ndarray]()
    for weight, params in members:
        found = model_log_probs(plan.runner, voice, params, answers, held_out, title)
        params.release()
        arrays = {f"{k}.{model}_BS": x for k, x in found.answers.items()}
        if found.pairs is not None:
            arrays[f"held_out.{model}_MN"] = found.pairs.astype(np.float32)
        known |= {k: known.get(k, 0) + weight * x for k, x in arrays.items()}
    return known
