"""Digests of a folder's files: a file that was changed is refused when it is read.

    folder/
      digests.jsonl   {"file": "pairs.jsonl", "at": 0, "digests": [one per line], ...}
      pairs.jsonl

Bytes reach the disk first, their digests after them. A kill in between leaves a file,
or the last lines of one, without digests: it is unfinished and is made again, and is
never taken for damage. What is listed does not change: a file that went missing has to
come out as it was. Only ``unlist`` lifts that, and it is written before the new bytes.
"""

import hashlib
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tpmm_jax.errors import BadInput, CorruptCheckpoint
from tpmm_jax.hosts import once
from tpmm_jax.store.files import (
    append_lines,
    canonical_json,
    encode_json,
    parse_json,
    read_lines_repaired,
    sha256,
    storage_errors,
    write_file,
    write_text,
)

DIGESTS = "digests.jsonl"
_TEXT = (".json", ".jsonl", ".jinja", ".txt")
# Which phase of an iteration makes a file, for messages; else it is answers.
_SAMPLING = "sampling and scoring"
# What the files begin with that the evaluation makes.
_EVALUATED = (
    *("evaluation", "judgements", "summary", "held_out"),
    *("router", "merged-", "rewards-", "ship"),
)
MADE_BY = {
    "pairs.jsonl": "labelling",
    "merge_progress.json": "merging the reference",
    "held_out_logps.npz": "merging the reference",
    "agreement_logps.npz": "training",
    "reference.json": "merging the reference",
    "reference_logps.npz": "computing the reference's log-probs",
    "log_probs.npz": "the evaluation",
    "held_out.npz": "the evaluation",
    "ship.json": "the evaluation",
    "ship_log_probs.npz": "the evaluation",
    "judgements.jsonl": "judging",
    "summary.json": "the evaluation",
    "router.json": "the evaluation",
    "metrics.jsonl": "the next start, from the run's metrics.jsonl,",
    DIGESTS: "each phase",
}


def listing(folder: pathlib.Path) -> dict[str, list[str]]:
    """Returns {file: digests of its lines, or of the whole of a binary file}.

    Raises:
      CorruptCheckpoint: a line of digests.jsonl is not what was written; names it.
    """
    path, found = folder / DIGESTS, dict[str, list[str]]()
    for number, line in enumerate(read_lines_repaired(path, truncate=False), start=1):
        try:
            _take_in(found, line)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise CorruptCheckpoint(
                f"{path}, line {number} is not what was written "
                f"({type(e).__name__}: {e}); {advice(path)}"
            ) from None
    return found


def _take_in(found: dict[str, list[str]], line: str) -> None:
    """Adds what a line lists; raises ValueError and such where it was changed."""
    body = json.loads(line)
    if body.pop("check") != sha256(body)[:16]:
        raise ValueError("its check sum does not fit")
    name, at, digests = body["file"], body["at"], body["digests"]
    known = found.setdefault(name, [])
    if at > len(known):
        raise ValueError(f"a line before it is missing: {name} has no line {at}")
    if digests is not None:
        # Lines that came again, as they were, leave those behind them listed.
        known[at:] = digests if at + len(digests) > len(known) else known[at:]
    elif at > 0:
        del known[at:]
    else:
        del found[name]


def good_entries(path: pathlib.Path) -> tuple[list[str], int]:
    """Returns the lines of digests.jsonl that are as written, and how many are not."""
    with storage_errors(path):
        lines = path.read_bytes().splitlines() if path.exists() else []
    found, good = dict[str, list[str]](), list[str]()
    for line in lines:
        try:
            text = line.decode()
            _take_in(found, text)
            good.append(text)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return good, len(lines) - len(good)


def _entry(name: str, at: int, digests: Sequence[str] | None) -> str:
    body = {"file": name, "at": at, "digests": digests}
    return canonical_json({**body, "check": sha256(body)[:16]})


def digests_of(path: pathlib.Path, data: bytes) -> list[str]:
    """Returns a digest of each line of a text file, or one of a binary file."""
    parts = data.splitlines(keepends=True) if path.suffix in _TEXT else [data]
    return [hashlib.blake2b(part, digest_size=8).hexdigest() for part in parts]


def is_finished(path: pathlib.Path) -> bool:
    """Whether a file is there and listed; what it holds is looked at when it is read.

    Raises:
      CorruptCheckpoint: digests.jsonl was damaged.
    """
    return path.exists() and path.name in listing(path.parent)


def lost_files(folder: pathlib.Path) -> list[str]:
    """Returns the names of listed files that are not there, in order.

    Log-probs that the merge and the training read are not among them: they are computed
    again where they are read again.
    """
    names = sorted(x for x in listing(folder) if not (folder / x).exists())
    caches = ("reference_logps.npz", "held_out_logps.npz", "agreement_logps.npz")
    return [x for x in names if x not in caches]


def read_listed(path: pathlib.Path) -> bytes:
    """Returns what a file holds, compared with its digests; as it is if it has none.

    Raises:
      CorruptCheckpoint: it was changed; names the file, the line and what to do.
      StorageError: it is missing or cannot be read.
    """
    # Before the bytes: a run that is going on writes them the other way round.
    known = listing(path.parent).get(path.name)
    with storage_errors(path):
        data = path.read_bytes()
    if known is not None and (fault := compare(path, data, known)):
        raise CorruptCheckpoint(f"{fault}; {advice(path)}")
    return data


def compare(path: pathlib.Path, data: bytes, known: Sequence[str]) -> str | None:
    """Returns what differs from what was written, or None.

    What an editor adds to the end of a .json file, or takes off it, changes no value.
    """
    now = digests_of(path, data)
    if now == known:
        return None
    if path.suffix == ".json":
        bare = data.rstrip(b"\r\n")
        if known in (digests_of(path, bare), digests_of(path, bare + b"\n")):
            return None
    if path.suffix not in _TEXT:
        return f"{path} is not what was written"
    for number, (one, other) in enumerate(zip(now, known), start=1):
        if one != other:
            return f"{path}, line {number} is not what was written"
    if len(now) < len(known):
        return f"{path}, line {len(now) + 1} is missing: {len(known)} were written"
    return f"{path}, line {len(known) + 1} was not written by the run"


def advice(path: pathlib.Path) -> str:
    """Returns the end of a message about a damaged file: what to do."""
    folder, restore = path.parent, "restore the file from a copy"
    if folder.parent.name == "iterations" and folder.name.isdigit():
        merged = path.name.startswith(("merged-", "rewards-"))
        usual = "the evaluation" if merged else _SAMPLING
        workdir, phase = folder.parents[1], MADE_BY.get(path.name, usual)
        again = f"{phase} of iteration {int(folder.name)} makes it again"
    elif folder.name == "model":
        workdir, again = folder.parent, "the next start takes it from the source again"
    else:
        return restore
    return f"{restore}, or run `tpmm repair {workdir}`, which moves it aside: {again}"


def write_listed(path: pathlib.Path, data: bytes, *, replace: bool = False) -> None:
    """Writes a whole file, then its digests.

    Args:
      replace: it may come out other than it was.

    Raises:
      CorruptCheckpoint: made again, it is not what it was; the file is not written.
      StorageError: the disk refuses.
    """
    once(lambda: _write_listed(path, data, replace), f"write {path}")


def _write_listed(path: pathlib.Path, data: bytes, replace: bool) -> None:
    known, now = listing(path.parent).get(path.name), digests_of(path, data)
    if known is not None and known != now:
        if not replace:
            _refuse_other(path, data, known)
        unlist(path)
    write_file(path, lambda file: file.write(data))
    if known != now:
        append_lines(path.parent / DIGESTS, [_entry(path.name, 0, now)])


def append_listed(path: pathlib.Path, lines: Sequence[str], at: int) -> None:
    """Appends lines behind the first ``at``, then their digests.

    Raises:
      CorruptCheckpoint: made again, a line is not what it was; nothing is written.
    """
    once(lambda: _append_listed(path, lines, at), f"append to {path}")


def _append_listed(path: pathlib.Path, lines: Sequence[str], at: int) -> None:
    known = listing(path.parent).get(path.name, [])
    data = "".join(line + "\n" for line in lines).encode()
    now = digests_of(path, data)
    before = known[at : at + len(now)]
    if before != now[: len(before)]:
        _refuse_other(path, data, before, first=at)
    append_lines(path, lines)
    if at + len(now) > len(known):
        append_lines(path.parent / DIGESTS, [_entry(path.name, at, now)])


def _refuse_other(
    path: pathlib.Path, data: bytes, known: Sequence[str], first: int = 0
) -> None:
    now = digests_of(path, data)
    line = next((n for n, (a, b) in enumerate(zip(now, known)) if a != b), len(known))
    where = f"{path}, line {first + line + 1}" if path.suffix in _TEXT else f"{path}"
    raise CorruptCheckpoint(
        f"{where}: made again, it is not what it was (on another device or with other "
        "versions numbers round differently; a source may have changed), and what the "
        "run did since rests on what it was; restore the file from a copy, or "
        f"{_give_up(path)}"
    )


def _give_up(path: pathlib.Path) -> str:
    folder = path.parent
    if folder.parent.name != "iterations" or not folder.name.isdigit():
        return "begin with an empty folder"
    command, number = f"tpmm repair {folder.parents[1]}", int(folder.name)
    if path.name.startswith(_EVALUATED):
        return f"evaluate again from there on: `{command} --evaluate {number}`"
    return f"train again from there on: `{command} --give-up {max(number, 1)}`"


def unlist(path: pathlib.Path, at: int = 0) -> None:
    """Takes digests back from line ``at`` on: what comes there may be different."""

    def act() -> None:
        if len(listing(path.parent).get(path.name, [])) > at:
            append_lines(path.parent / DIGESTS, [_entry(path.name, at, None)])

    once(act, f"unlist {path}")


def remove_listed(path: pathlib.Path) -> None:
    """Removes a file and takes its digests back; nothing if it is not there."""

    def act() -> None:
        unlist(path)
        with storage_errors(path):
            path.unlink(missing_ok=True)

    once(act, f"remove {path}")


def compact(folder: pathlib.Path) -> None:
    """Writes digests.jsonl anew, one line per file, in the order of their names."""

    def act() -> None:
        found = sorted(listing(folder).items())
        lines = [_entry(name, 0, digests) + "\n" for name, digests in found]
        write_text(folder / DIGESTS, "".join(lines))

    once(act, f"compact {folder}")


def check_folder(folder: pathlib.Path) -> None:
    """Raises CorruptCheckpoint for the first listed file that is not as it was."""
    for name in listing(folder):
        if not (path := folder / name).exists():
            raise CorruptCheckpoint(f"{path} is missing; {advice(path)}")
        read_listed(path)


def list_folder(folder: pathlib.Path) -> None:
    """Lists every file of a folder as it is; for one that others have just written."""

    def act() -> None:
        for path in sorted(folder.iterdir()):
            if path.name != DIGESTS:
                write_listed(path, path.read_bytes(), replace=True)

    once(act, f"list {folder}")


def read_listed_json(path: pathlib.Path) -> Any:
    """Returns a JSON file's value, compared with its digests."""
    return parse_json(read_listed(path), path)


def write_listed_json(path: pathlib.Path, obj: Any, *, replace: bool = False) -> None:
    """Writes indented JSON with sorted keys, and its digests."""
    write_listed(path, encode_json(obj), replace=replace)


def write_npz(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes named arrays as .npz, and its digest; it may replace another.

    Raises:
      BadInput: an array of Python objects (it would be pickled).
      StorageError: the disk refuses; names `path`.
    """
    plain = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in plain.items():
        if array.dtype.hasobject:
            raise BadInput(
                f"{path}: array {name!r} holds Python objects; wanted numbers or "
                "text of fixed width"
            )
    file = io.BytesIO()
    np.savez(file, **plain)  # type: ignore[arg-type]
    write_listed(path, file.getvalue(), replace=True)


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a .npz file, compared with its digest.

    Raises:
      CorruptCheckpoint: it is not what was written, or holds no arrays.
    """
    data = read_listed(path)
    try:
        with np.load(io.BytesIO(data)) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        # Of a damaged file NumPy and zipfile raise whatever its bytes lead them to.
        raise CorruptCheckpoint(
            f"{path} holds no arrays ({type(error).__name__}: {error}); {advice(path)}"
        ) from None
