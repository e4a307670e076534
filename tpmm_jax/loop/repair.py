"""Brings a run's folder into a state that the same command continues from."""

import pathlib
from collections.abc import Callable

from tpmm_jax.errors import BadInput, CorruptCheckpoint, nearest_path
from tpmm_jax.log.jsonl import readable
from tpmm_jax.log.metrics import METRICS, TIMING, MetricsLog
from tpmm_jax.loop.workdir import CONFIG, check_format, open_workdir
from tpmm_jax.store import Trajectory
from tpmm_jax.store.commit import now
from tpmm_jax.store.digests import advice, digests_of, listing, lost_files, unlist
from tpmm_jax.store.files import read_json, storage_errors, write_file
from tpmm_jax.store.manager import numbered, padded
from tpmm_jax.store.mending import (
    ASIDE,
    damaged_files,
    give_up_evaluations,
    give_up_policies,
    keep_copy,
    mend_digests,
    mend_list,
    set_aside,
)
from tpmm_jax.weights.hub import REWARD, TRAJECTORY

Say = Callable[[str], None]


def repair(
    workdir: pathlib.Path,
    say: Say,
    *,
    give_up: int | None = None,
    evaluate: int | None = None,
) -> bool:
    """Moves what is damaged aside, so that the run makes it again; deletes nothing.

    Args:
      say: called with every thing that was found and done.
      give_up: the first policy to give up, with its iteration and all later ones.
      evaluate: the first iteration that is to be evaluated again, with all later ones.

    Returns:
      Whether anything was done.

    Raises:
      BadInput: no run, or one of another format.
      CorruptCheckpoint: damage that nothing here can mend; says what to do.
    """
    kept = _kept(workdir, give_up)
    with open_workdir(workdir):
        _check_numbers(workdir, kept, give_up, evaluate)
        check_format(workdir)
        stamp, count = now(), 0

        def did(text: str) -> None:
            nonlocal count
            count += 1
            say(text)

        for step in mend_list(workdir, workdir / kept, stamp):
            did(f"trajectory.jsonl: the line of step {step} was written again")
        if give_up is not None:
            for step in give_up_policies(workdir, give_up, stamp):
                did(f"theta_{step} was given up, and iteration {step} with it")
        if evaluate is not None:
            for number in give_up_evaluations(workdir, evaluate, stamp):
                did(f"iteration {number} will be evaluated again")
        for number, folder in padded(workdir / "iterations").items():
            _mend_folder(workdir, folder, stamp, did)
            _mend_rows(workdir, number, folder / METRICS, stamp, did)
        _mend_folder(workdir, workdir / "model", stamp, did)
        _mend_lines(workdir, stamp, did)
        _drop_rows(workdir, give_up, evaluate, stamp, did)
        _check_rest(workdir, kept)
        if (workdir / ASIDE / stamp).exists():
            say(f"what was moved or replaced lies in {workdir / ASIDE / stamp}")
        return count > 0


def _kept(workdir: pathlib.Path, give_up: int | None) -> str:
    """Returns the folder of the run's policies or models."""
    kept = REWARD if (workdir / REWARD).is_dir() else TRAJECTORY
    if not (workdir / kept).is_dir():
        hint = nearest_path(workdir) or "; is it a run's workdir?"
        raise BadInput(f"{workdir} holds no trajectory{hint}")
    if not any((workdir / kept).iterdir()):
        raise BadInput(
            f"{workdir} holds no policy yet: its start was refused, and the same "
            "command starts it anew"
        )
    if kept == REWARD and give_up is not None:
        raise BadInput(
            f"--give-up is {give_up}, but {workdir} is a run of tpmm train_reward, "
            "which is one training: choose another --workdir, or --evaluate 1"
        )
    return kept


def _check_numbers(
    workdir: pathlib.Path, kept: str, give_up: int | None, evaluate: int | None
) -> None:
    """Raises BadInput for a policy or an iteration that is not there."""
    steps, iterations = numbered(workdir / kept), padded(workdir / "iterations")
    last = max([*steps, *iterations], default=0)
    if give_up is not None and not 1 <= give_up <= last:
        raise BadInput(
            f"--give-up is {give_up}; {workdir} holds the policies 1 to {last} (of "
            "theta_0 a run is begun: choose another --workdir)"
        )
    if evaluate is not None and evaluate not in iterations:
        raise BadInput(f"--evaluate is {evaluate}; {workdir} has 0 to {last}")


def _mend_folder(
    workdir: pathlib.Path, folder: pathlib.Path, stamp: str, did: Say
) -> None:
    """Moves a folder's damaged files aside, but the metric rows; names missing ones."""
    if dropped := mend_digests(workdir, folder, stamp):
        # So that the run goes through the iteration again, and lists its files.
        unlist(folder / METRICS)
        did(
            f"{folder / 'digests.jsonl'}: {dropped} broken lines dropped; their files "
            "are made again"
        )
    for name in lost_files(folder):
        if name != METRICS:
            did(f"{folder / name} is missing; the run makes it again")
    for path, fault in damaged_files(folder).items():
        if path.name != METRICS:
            set_aside(workdir, path, stamp)
            did(f"{fault}: moved aside; the run makes it again")


def _mend_rows(
    workdir: pathlib.Path, number: int, path: pathlib.Path, stamp: str, did: Say
) -> None:
    """Takes an iteration's rows from the run's metrics.jsonl where its own are damaged.

    Rows that neither has are lost, which is said.
    """
    own = [line for _, line in readable(path)]
    known = listing(path.parent).get(METRICS)
    with storage_errors(path):
        data = path.read_bytes() if path.exists() else b""
    if known is None and data == b"".join(own):
        return
    if known is not None and digests_of(path, data) == known:
        return
    rows = readable(workdir / METRICS)
    copied = [line for row, line in rows if row["iteration"] == number]
    best = max(own, copied, key=len)
    if known is not None and digests_of(path, b"".join(copied)) == known:
        best = copied
    elif known is not None:
        unlist(path)
        lost = len(known) - len(best)
        did(f"{path}: {lost} of {len(known)} metric rows are lost for good")
    if path.exists():
        keep_copy(workdir, path, stamp)
    write_file(path, lambda file: file.writelines(best))
    did(f"{path}: {len(best)} metric rows put back")


def _mend_lines(workdir: pathlib.Path, stamp: str, did: Say) -> None:
    """Drops lines of the files of clocks that hold no row."""
    path = workdir / TIMING
    good = [line for _, line in readable(path)]
    with storage_errors(path):
        data = path.read_bytes() if path.exists() else b""
    if data.rstrip(b"\n") != b"".join(good).rstrip(b"\n"):
        keep_copy(workdir, path, stamp)
        write_file(path, lambda file: file.writelines(good))
        did(f"{path}: broken lines dropped")


def _drop_rows(
    workdir: pathlib.Path,
    give_up: int | None,
    evaluate: int | None,
    stamp: str,
    did: Say,
) -> None:
    """Drops the rows of what comes again, and writes metrics.jsonl anew."""
    folders, path = padded(workdir / "iterations"), workdir / METRICS
    with storage_errors(path):
        old = path.read_bytes() if path.exists() else None
    if give_up is not None:
        # Else the rows of a folder that is gone would be put back.
        lines = [line for row, line in readable(path) if row["iteration"] < give_up]
        write_file(path, lambda file: file.writelines(lines))
    with MetricsLog(workdir, mirrors=[]) as log:
        for number in folders:
            if evaluate is not None and number >= evaluate:
                log.rewind(number, lambda row: row["kind"] != "iteration")
    with storage_errors(path):
        changed = path.read_bytes() != old
    if changed and give_up is None and evaluate is None:
        if old is not None:
            write_file(workdir / ASIDE / stamp / METRICS, lambda file: file.write(old))
        did(f"{path}: written again from the iterations' own files")


def _check_rest(workdir: pathlib.Path, kept: str) -> None:
    """Raises CorruptCheckpoint for damage that only a copy, or giving up, mends."""
    with Trajectory(workdir / kept, read_only=True) as trajectory:
        trajectory.refuse_damaged()
    if numbered(workdir / kept):
        read_json(workdir / CONFIG)  # no digest: a start writes it again
    for path, fault in damaged_files(workdir).items():
        raise CorruptCheckpoint(f"{fault}; {advice(path)}")
