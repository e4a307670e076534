"""Log-probabilities of an evaluation: three models, one after the other."""

import pathlib
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.data.records import PairRow, Rollout
from tpmm_jax.errors import CorruptCheckpoint
from tpmm_jax.loop.answers import Loaded, answer_log_probs, pair_log_probs
from tpmm_jax.loop.reference import merged_reference, pair_table
from tpmm_jax.loop.run import Run
from tpmm_jax.merging import one_hot_index
from tpmm_jax.store.files import read_json, sha256, write_npz

# The name of the evaluation's own prompts among the sets.
MAIN = "evaluation"
POLICY, THETA_0, REFERENCE = "policy", "theta_0", "reference"


def compared(run: Run) -> tuple[str, ...]:
    """Returns the models whose log-probs an evaluation needs."""
    free = run.config.loss.reference_free
    return (POLICY, THETA_0) if free else (POLICY, THETA_0, REFERENCE)


def evaluation_log_probs(
    run: Run,
    t: int,
    answers: Mapping[str, list[Rollout]],
    held_out: Sequence[PairRow],
    policy: Loaded,
) -> dict[str, np.ndarray]:
    """Returns "SET.MODEL_BS" and "held_out.MODEL_MN" of ``compared`` models, nats.

    One model is in memory at a time, and what is done is in log_probs.npz. With
    trust_region the reference is the one that the iteration began with.
    """
    path, models = run.folder(t) / "log_probs.npz", compared(run)
    weights = np.zeros((0, 0))
    if REFERENCE in models:
        weights = np.asarray(read_json(run.folder(t) / "reference.json")["weights"])
    texts = [[r.prompt_ids, r.response_ids] for a in answers.values() for r in a]
    pairs = [[r.prompt_ids, r.chosen_ids, r.rejected_ids] for r in held_out]
    digests = [run.trajectory.digest(step) for step in range(t + 1)]
    key = sha256([texts, pairs, digests, weights.tolist(), run.codec.digest])
    known = _read_npz(path, key)
    for model in models:
        if any(f".{model}_" in name for name in known):
            continue
        if model == REFERENCE and one_hot_index(weights) == 0:
            of_0 = [name for name in known if f".{THETA_0}_" in name]
            known |= {n.replace(THETA_0, REFERENCE): known[n] for n in of_0}
        else:
            known |= _of_model(run, t, model, answers, held_out, policy)
        write_npz(path, {**known, "key": np.array(key)})
    policy.release()
    return known


def _read_npz(path: pathlib.Path, key: str) -> dict[str, np.ndarray]:
    """Returns what was computed already for this very data."""
    if not path.exists():
        return {}
    try:
        with np.load(path) as file:
            if str(file["key"]) != key:
                return {}
            return {name: file[name] for name in file.files if name != "key"}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CorruptCheckpoint(
            f"{path}: {error}; delete it to compute it anew"
        ) from None


def _of_model(
    run: Run,
    t: int,
    model: str,
    answers: Mapping[str, list[Rollout]],
    held_out: Sequence[PairRow],
    policy: Loaded,
) -> dict[str, np.ndarray]:
    def compute(params: Params) -> dict[str, np.ndarray]:
        found = {}
        title = f"iteration {t}: log-probs of {model}"
        for name, rows in answers.items():
            where = title if name == MAIN else f"{title} on {name}"
            logps_BS = answer_log_probs(run.runner, params, rows, where)
            found[f"{name}.{model}_BS"] = logps_BS
        if held_out:
            table = pair_table(run, list(held_out))
            where = f"{title} on held-out pairs"
            logps_MN = pair_log_probs(run.runner, params, table, where)
            found[f"held_out.{model}_MN"] = logps_MN
        return found

    if model == POLICY:
        found = compute(policy())
        policy.release()
        return found
    if model == THETA_0:
        return compute(run.policy(0))
    with merged_reference(run, t) as (params, _):
        return compute(params)
