"""Puts a run's lists back in order, and moves damaged files aside; deletes nothing."""

import pathlib
import shutil

import orbax.checkpoint as ocp

from tpmm_jax.errors import CorruptCheckpoint
from tpmm_jax.store import adapters, commit, manager
from tpmm_jax.store.digests import DIGESTS, compare, good_entries, listing, unlist
from tpmm_jax.store.files import sha256, storage_errors, write_text
from tpmm_jax.store.listing import ITEMS, LIST, Entry, what_to_do

ASIDE = "damaged"
# Files that the evaluation of a policy writes.
OF_EVALUATION = (
    "evaluation*.jsonl", "judgements.jsonl", "log_probs.npz", "held_out.npz",
    "summary.json", "ship.json", "ship_log_probs.npz", "router.json",
    "merged-*.json", "rewards-*.npz",
)  # fmt: skip


def set_aside(workdir: pathlib.Path, path: pathlib.Path, stamp: str) -> pathlib.Path:
    """Moves a file or folder to WORKDIR/damaged/STAMP, under its own place there."""
    target = workdir / ASIDE / stamp / path.relative_to(workdir)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return target


def keep_copy(workdir: pathlib.Path, path: pathlib.Path, stamp: str) -> None:
    """Copies a file that is about to be mended to where ``set_aside`` moves."""
    target = workdir / ASIDE / stamp / path.relative_to(workdir)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def mend_digests(workdir: pathlib.Path, folder: pathlib.Path, stamp: str) -> int:
    """Leaves the lines of digests.jsonl that are as written; returns how many went."""
    path = folder / DIGESTS
    lines, dropped = good_entries(path)
    if dropped:
        keep_copy(workdir, path, stamp)
        write_text(path, "".join(line + "\n" for line in lines))
    return dropped


def damaged_files(folder: pathlib.Path) -> dict[pathlib.Path, str]:
    """Returns {listed file that is there: what differs} of a folder."""
    found = {}
    for name, known in listing(folder).items():
        path = folder / name
        if not path.exists():
            continue
        with storage_errors(path):
            data = path.read_bytes()
        if fault := compare(path, data, known):
            found[path] = fault
    return found


def mend_list(workdir: pathlib.Path, directory: pathlib.Path, stamp: str) -> list[int]:
    """Writes lines of trajectory.jsonl that are lost or broken again.

    They are made from what the steps' own folders record, which a restore compares
    with the weights. Returns the steps.
    """
    path, lines, made = directory / LIST, list[str](), list[int]()
    with storage_errors(path):
        old = path.read_bytes().splitlines() if path.exists() else []
    folders = manager.numbered(directory)
    for step in range(max(len(old), len(folders))):
        line = old[step] if step < len(old) else b""
        try:
            if Entry.parse(line.decode()).step != step:
                raise ValueError
            lines.append(line.decode())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if step not in folders or not manager.looks_whole(folders[step], ITEMS):
                break
            lines.append(entry_of(directory, step).line())
            made.append(step)
    text = "".join(line + "\n" for line in lines)
    if text.encode() != b"".join(line + b"\n" for line in old):
        if path.exists():
            keep_copy(workdir, path, stamp)
        write_text(path, text)
    return made


def entry_of(directory: pathlib.Path, step: int) -> Entry:
    """Returns a step's line, from what its folder records.

    Raises:
      CorruptCheckpoint: the record cannot be read.
    """
    found = manager.read_items(
        directory,
        step,
        what_to_do(directory, step),
        meta=ocp.args.JsonRestore(),
        integrity=ocp.args.JsonRestore(),
    )
    try:
        return Entry(
            step=step,
            digest=adapters.step_digest(found["integrity"]),
            meta=sha256(found["meta"]),
            storage=found["integrity"]["storage"],
            files=manager.file_sizes(directory / str(step)),
            time=commit.now(),
        )
    except (KeyError, TypeError) as error:
        raise CorruptCheckpoint(
            f"step {step}, integrity: {directory / str(step)} does not hold what was "
            f"saved ({error!r}); {what_to_do(directory, step)}"
        ) from None


def give_up_policies(workdir: pathlib.Path, first: int, stamp: str) -> list[int]:
    """Moves the policies and iterations from ``first`` on aside; returns the steps.

    The list is cut last: killed in between, the same command goes on.
    """
    directory = workdir / "trajectory"
    steps = sorted(n for n in manager.numbered(directory) if n >= first)
    iterations = manager.padded(workdir / "iterations")
    for step in sorted({*steps, *(n for n in iterations if n >= first)}, reverse=True):
        for path in (iterations.get(step), directory / str(step)):
            if path is not None and path.exists():
                set_aside(workdir, path, stamp)
    if (workdir / "work").exists():
        set_aside(workdir, workdir / "work", stamp)
    path = directory / LIST
    with storage_errors(path):
        lines = path.read_bytes().splitlines(keepends=True)
    keep_copy(workdir, path, stamp)
    write_text(path, b"".join(lines[:first]).decode(errors="replace"))
    return steps


def give_up_evaluations(workdir: pathlib.Path, first: int, stamp: str) -> list[int]:
    """Moves what the evaluations from ``first`` on wrote aside; returns iterations."""
    iterations = manager.padded(workdir / "iterations")
    found = sorted(n for n in iterations if n >= first)
    for number in found:
        folder = iterations[number]
        # Also those that are gone: made again they may come out otherwise.
        names = {*listing(folder), *(path.name for path in folder.iterdir())}
        for path in (folder / name for name in sorted(names)):
            if any(path.match(pattern) for pattern in OF_EVALUATION):
                unlist(path)
                if path.exists():
                    set_aside(workdir, path, stamp)
    # What a reward run merged at its evaluation.
    if found and all((workdir / name).is_dir() for name in ("reward", "merged")):
        set_aside(workdir, workdir / "merged", stamp)
    return found
