"""Log-probs of held-out pairs under the policies so far, each computed once.

iterations/003/held_out_logps.npz holds what iteration 3 had to compute, an array for
each policy and hold-out, under a digest of both; later iterations read it. The
hold-out of iteration t is new to all t policies, and the newest policy to t - 1
hold-outs, of which the evaluation has read one: at most 2 t - 1 passes over a hold-out
in an iteration. Device memory holds one policy at a time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tpmm_jax.data.records import PairRow
from tpmm_jax.loop.log_probs import (
    Sequences,
    sequence_log_probs,
    unique_sequences,
)
from tpmm_jax.loop.rollouts import read_pairs
from tpmm_jax.loop.run import Disk, Plan
from tpmm_jax.loop.safety import refuse_log_probs
from tpmm_jax.loop.voice import Voice
from tpmm_jax.merging import Margins
from tpmm_jax.store.digests import is_finished, read_npz, write_npz
from tpmm_jax.store.files import sha256

NAME = "held_out_logps.npz"


@dataclass(frozen=True)
class CachedPairs:
    """Pairs of several iterations, and their log-probs.

    Attributes:
      logps: policy -> float32 [P, N], nats.
    """

    rows: list[PairRow]
    logps: dict[int, np.ndarray]

    def margins(self, *, length_normalized: bool) -> Margins:
        """Returns D of every policy but theta_0, which has to be among them."""
        sizes = [(len(row.chosen_ids), len(row.rejected_ids)) for row in self.rows]
        length_PN = np.asarray(sizes, np.float64)
        later = [logps_PN for k, logps_PN in sorted(self.logps.items()) if k]
        ratio_PNK = np.stack(later, axis=-1).astype(np.float64)
        ratio_PNK -= self.logps[0][..., None]
        drift_K = ratio_PNK.sum(axis=(0, 1)) / length_PN.sum()
        if length_normalized:
            ratio_PNK /= length_PN[..., None]
        return Margins(
            ratio_PNK[:, 0] - ratio_PNK[:, 1],
            [tuple(row.prompt_ids) for row in self.rows],
            drift_K,
        )


def pooled_iterations(iteration: int, window: int | None) -> range:
    """Returns the iterations whose hold-outs are read: so many newest, or all."""
    return range(max(1, iteration + 1 - (window or iteration)), iteration + 1)


def held_out_pairs(
    plan: Plan,
    disk: Disk,
    voice: Voice,
    iteration: int,
    iterations: Iterable[int],
    policies: Iterable[int],
) -> CachedPairs:
    """Returns the held-out pairs of some iterations with log-probs of some policies.

    What no earlier pass has computed is computed and kept in the iteration's folder.

    Raises:
      NotFinite: a policy gives an answer no finite log-prob; names the pairs.
    """
    holdouts = {h: read_pairs(disk, h).held_out for h in iterations}
    return policy_log_probs(plan, disk, voice, iteration, holdouts, policies, NAME)


def policy_log_probs(
    plan: Plan,
    disk: Disk,
    voice: Voice,
    iteration: int,
    pairs: Mapping[int, Sequence[PairRow]],
    policies: Iterable[int],
    name: str,
) -> CachedPairs:
    """Returns pairs of several iterations with log-probs of some policies.

    Args:
      name: of the file that keeps what is computed: NAME where they are held out.
    """
    given = {h: rows for h, rows in pairs.items() if rows}
    unique = {h: unique_sequences(rows) for h, rows in given.items()}
    of_holdout = {h: _digest(plan, sequences) for h, (sequences, _) in unique.items()}
    known = _read_known(disk, iteration, name)
    rows = [row for some in given.values() for row in some]
    logps: dict[int, np.ndarray] = {}
    for k in policies:
        names = {h: _key(disk, of_holdout[h], k) for h in unique}
        if name == NAME and k in unique and names[k] not in known:
            evaluated = _read_evaluated(disk, k, *unique[k])
            known |= {} if evaluated is None else {names[k]: evaluated}
        missing = [h for h in unique if names[h] not in known]
        which = "held-out" if name == NAME else "the pairs'"
        title = f"iteration {iteration}: {which} log-probs of theta_{k}"
        if missing:
            computed = _compute(
                plan, disk, voice, k, [unique[h][0] for h in missing], title
            )
            found = {names[h]: x for h, x in zip(missing, computed, strict=True)}
            known |= found
            # What is not finite is refused below, and computed again.
            found = {name: x for name, x in found.items() if np.isfinite(x).all()}
            path = disk.folder(iteration) / name
            write_npz(path, {**(read_npz(path) if is_finished(path) else {}), **found})
        of_pairs = [known[names[h]][places] for h, (_, places) in unique.items()]
        logps[k] = np.concatenate(of_pairs) if rows else np.zeros((0, 2), np.float32)
        refuse_log_probs(logps[k], rows, title)
    return CachedPairs(rows, logps)


def kept_log_probs(
    plan: Plan, disk: Disk, iteration: int, rows: Sequence[PairRow], policy: int
) -> np.ndarray | None:
    """Returns a policy's log-probs of an iteration's own hold-out, float32 [P, N].

    None: nothing has computed them yet.
    """
    sequences, place_PN = unique_sequences(rows)
    key = _key(disk, _digest(plan, sequences), policy)
    logps_S = _read_known(disk, iteration, NAME).get(key)
    return None if logps_S is None else logps_S[place_PN]


def _digest(plan: Plan, sequences: Sequences) -> str:
    return sha256([sequences, plan.runner.codec.digest, plan.decoder.compute_dtype])


def _key(disk: Disk, of_holdout: str, policy: int) -> str:
    """Returns the name of an array in the files."""
    return sha256([of_holdout, disk.trajectory.digest(policy)])[:16]


def _read_known(disk: Disk, last: int, name: str) -> dict[str, np.ndarray]:
    """Returns every array that iterations up to ``last`` have kept.

    Training pairs are read in their own iteration alone.
    """
    known: dict[str, np.ndarray] = {}
    for t in range(1 if name == NAME else last, last + 1):
        if is_finished(path := disk.folder(t) / name):
            known |= read_npz(path)
    return known


def _read_evaluated(
    disk: Disk, t: int, sequences: Sequences, place_PN: np.ndarray
) -> np.ndarray | None:
    """Returns what the evaluation of theta_t found on its own hold-out, if it has."""
    path = disk.folder(t) / "held_out.npz"
    logps_PN = read_npz(path)["policy_MN"] if is_finished(path) else np.zeros(0)
    if logps_PN.shape != place_PN.shape:
        return None
    logps_S = np.zeros(len(sequences), np.float32)
    # Backwards, so that of equal sequences the first counts.
    logps_S[place_PN.ravel()[::-1]] = logps_PN.ravel()[::-1]
    return logps_S


def _compute(
    plan: Plan,
    disk: Disk,
    voice: Voice,
    k: int,
    holdouts: Sequence[Sequences],
    title: str,
) -> list[np.ndarray]:
    """Returns theta_k's log-probs of the sequences of each hold-out, float32."""
    together = [one for sequences in holdouts for one in sequences]
    logps_S = sequence_log_probs(plan.runner, voice, disk.policy(k), together, title)
    ends = np.cumsum([len(sequences) for sequences in holdouts])[:-1]
    return np.split(logps_S.astype(np.float32), ends)
