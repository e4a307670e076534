"""The folder that a training writes to: its own, and pinned to one configuration."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import tpmm_jax
from tpmm_jax.config.fields import changes, flatten
from tpmm_jax.errors import BadInput, CorruptCheckpoint, refuse_address
from tpmm_jax.hosts import agree_same
from tpmm_jax.hosts.meeting import LOST, OthersEnded
from tpmm_jax.store import RunLock, Trajectory, WorkStore, check_writable
from tpmm_jax.store.digests import check_folder, read_listed_json
from tpmm_jax.store.files import read_json, remove_tree, write_json

CONFIG, DATA = "config.json", "data.json"
# How a run's files are read, ordered and checked; data.json records it. It goes up
# where the same folder would be read otherwise than it was written.
FORMAT = 2
# The last version that continues runs of an earlier format.
CONTINUED_BY = {1: "0.1.0"}
# Fields added to the config since the format last went up -> the value with which a run
# that began without the field goes on as it began. A field that is missing in the
# config.json of such a run is no change.
ADDED: Mapping[str, Any] = {
    "mesh.expert": 1,
    "train.lengths": 1,
    "scorer.retries": 0,
    "scorer.weights": None,
    "scorer.ensemble": "predictions",
    "scorer.length_penalty": 0.0,
    "scorer.normalise": False,
    "scorer.clip": None,
    "loss.dr_beta": 1.0,
    "loss.c_max": 4.0,
    "loss.tau": 6.907,
    "loss.lam": 1.0,
    "pairing.labels": "reward",
    "pairing.margins": "keep",
    "pairing.weights": "equal",
    "madpo.margins": None,
    "madpo.calibrate": True,
    "reference.anchor_share": None,
    "reference.holdout_window": 1,
    "reference.mix": "weights",
    "reference.fit": "adam",
    "train_from": "previous",
    "ship": "last",
    "report_to": [],
    "judge.template": None,
    "judge.template_file": None,
    "judge.first": ["A"],
    "judge.second": ["B"],
    "judge.tie": [r"\b[Aa] tie\b", "tie", "Tie", "TIE"],
    "judge.max_new_tokens": 8,
    "judge.chat": None,
    "judge.batch_size": 16,
    "judge.dtype": "float32",
    "judge.revision": None,
    "judge.base": None,
}
# The same of a reward run.
REWARD_ADDED: Mapping[str, Any] = {"train.lengths": 1, "report_to": []}
# A field that is now called reference.holdout_window; it stays in the config.json of a
# run that began with it.
OF_THEN = "reference.earlier_holdouts"


@contextlib.contextmanager
def open_workdir(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a folder: it can be written to, and no other command trains in it.

    Raises:
      BadInput, StorageError: it is in use, its disk refuses, or the processes do not
        share it.
    """
    refuse_address(workdir, "--workdir")
    check_writable(workdir)
    with RunLock(workdir) as lock:
        agree_same({f"{workdir}/{RunLock.FILE} (is the folder shared?)": lock.owner()})
        # Of a process that was killed.
        remove_tree(workdir / "scratch")
        yield


def agree_place(coming: int, work: WorkStore) -> int:
    """Returns the next iteration, which all processes have to find in the folder.

    Raises:
      OthersEnded: a disk shows one of them what another no longer has; started again
        it may have caught up.
    """
    try:
        agree_same(
            {
                f"the next iteration of {work.directory.parent}": coming,
                f"the step that {work.directory} holds": work.latest(),
            }
        )
    except BadInput as error:
        raise OthersEnded(str(error), LOST) from None
    return coming


def check_format(workdir: pathlib.Path) -> None:
    """Raises BadInput if a started run is of another format than this version's."""
    check_folder(workdir)
    path = workdir / DATA
    record = read_listed_json(path) if path.exists() else {}
    found = record.get("format", 1) if isinstance(record, dict) else None
    if found == FORMAT:
        return
    here = f"this is tpmm_jax {tpmm_jax.__version__}, which continues format {FORMAT}"
    if found in CONTINUED_BY:
        raise BadInput(
            f"{workdir} holds a run of format {found}; {here}. tpmm_jax "
            f"{CONTINUED_BY[found]} continues it; or choose another --workdir. Its "
            "policies can still be sampled, evaluated, exported and reported on"
        )
    raise BadInput(
        f"{workdir} holds a run of format {found!r}; {here}. Continue it with the "
        "newer version that began it, or choose another --workdir"
    )


def refuse_lost_lines(workdir: pathlib.Path, trajectory: Trajectory) -> None:
    """Raises CorruptCheckpoint if a policy was evaluated that the list does not name.

    A kill between a save and its line leaves a step without one too, but nothing that
    was done with the policy. Answers to begin with may lie in a folder in which no run
    has begun.
    """
    if not (workdir / CONFIG).exists():
        return
    coming = len(trajectory.steps())
    folder = workdir / "iterations" / f"{coming:03d}"
    later = workdir / "iterations" / f"{coming + 1:03d}"
    names = ("evaluation*.jsonl", "log_probs.npz", "summary.json")
    if later.exists() or any(any(folder.glob(name)) for name in names):
        raise CorruptCheckpoint(
            f"{trajectory.directory / 'trajectory.jsonl'} has no line for step "
            f"{coming}, but that policy was evaluated: the line was lost; restore the "
            f"file from a copy, or run `tpmm repair {workdir}`, which writes the line "
            "from the step's own record"
        )


def as_begun(workdir: pathlib.Path, config: Any, added: Mapping[str, Any]) -> Any:
    """Returns the config with the values that fields had before there were any.

    Args:
      added: see ADDED. A field that the run began without, and that is at its default
        now, takes its value there.
    """
    raw = flatten(read_json(workdir / CONFIG))
    begun = {**added, **_renamed(raw)}
    for name, then in begun.items():
        if name not in raw and _is_default(config, name):
            config = _replaced(config, name.split("."), then)
    return config


def _renamed(known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config's fields under today's names."""
    found = dict(known)
    if (pooled := found.pop(OF_THEN, None)) is not None:
        found["reference.holdout_window"] = None if pooled else 1
    return found


def _is_default(config: Any, name: str) -> bool:
    *sections, last = name.split(".")
    for section in sections:
        config = getattr(config, section)
    field = next(f for f in dataclasses.fields(config) if f.name == last)
    return getattr(config, last) == field.default


def _replaced(config: Any, parts: list[str], value: Any) -> Any:
    if len(parts) > 1:
        value = _replaced(getattr(config, parts[0]), parts[1:], value)
    return dataclasses.replace(config, **{parts[0]: value})


def check_unchanged(
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    may_change: Collection[str],
    added: Mapping[str, Any],
) -> None:
    """Raises BadInput if the folder is pinned to another configuration.

    Args:
      config: in its nested JSON form.
      may_change: dotted names of fields that may differ.
      added: see ADDED.
    """
    before = flatten(read_json(workdir / CONFIG))
    # A run that began without a field had its behaviour of then.
    before = {**added, **_renamed(before)}
    changed = changes(before, flatten(config), may_change)
    if changed:
        rule = "reference.rule: was 'learned', is now 'previous'"
        moved = "\nThe default was once learned: --set reference.rule=learned continues"
        raise BadInput(
            f"{workdir} holds a run of another configuration:\n  "
            + "\n  ".join(changed)
            + (moved if rule in changed else "")
            + "\nChange it back to continue that run, or choose another --workdir"
        )


def pin_config(
    workdir: pathlib.Path,
    config: dict[str, Any],
    *,
    started: bool,
    added: Mapping[str, Any],
) -> None:
    """Writes the configuration that later starts are compared with.

    Fields that a started run began without stay out of it.
    """
    known = flatten(read_json(workdir / CONFIG)) if started else {}
    for name in added:
        if started and name not in known:
            section, _, last = name.rpartition(".")
            inner = config
            for part in filter(None, section.split(".")):
                inner = inner[part]
            inner.pop(last, None)
    if OF_THEN in known:
        config["reference"][OF_THEN.rpartition(".")[2]] = known[OF_THEN]
    write_json(workdir / CONFIG, config)
