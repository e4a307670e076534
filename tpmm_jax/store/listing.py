"""trajectory.jsonl: which steps are committed, and is each still whole?"""

import json
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

from tpmm_jax.errors import CorruptCheckpoint
from tpmm_jax.store import manager
from tpmm_jax.store.files import (
    canonical_json,
    read_lines_repaired,
    sha256,
    storage_errors,
    sync_folder,
    write_text,
)

LIST = "trajectory.jsonl"
ITEMS = {"policy": "tree", "meta": "json", "integrity": "json"}
DISCARDED = ".discarded-"
SET_ASIDE = "set-aside-"


@dataclass(frozen=True)
class Entry:
    """A line of trajectory.jsonl.

    Attributes:
      step: its number.
      digest: of the tree that a restore gives, or of adapters and base.
      meta: SHA-256 of the canonical JSON of the step's meta.
      storage: "float32", "bfloat16_delta" or "lora".
      files: "relative/path" -> bytes.
      time: when it was committed, UTC.
    """

    step: int
    digest: str
    meta: str
    storage: str
    files: dict[str, int]
    time: str

    def line(self) -> str:
        """The line, with a check sum of its own."""
        body = dict(vars(self))
        return canonical_json({**body, "check": sha256(body)})

    @staticmethod
    def parse(line: str) -> "Entry":
        """Raises ValueError, KeyError or TypeError if the line is not as written."""
        body = json.loads(line)
        if body.pop("check") != sha256(body):
            raise ValueError("its check sum does not fit")
        return Entry(**body)


def read_list(directory: pathlib.Path, *, repair: bool) -> list[Entry]:
    """The committed steps; entry n is step n.

    Args:
      directory: the trajectory's.
      repair: cut a last line that a kill tore.

    Raises:
      CorruptCheckpoint: a line is not what was written; names it.
    """
    path = directory / LIST
    entries = []
    for n, line in enumerate(read_lines_repaired(path, truncate=repair)):
        try:
            entry = Entry.parse(line)
            if entry.step != n:
                raise ValueError(f"it is step {entry.step}, wanted {n}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise CorruptCheckpoint(
                f"{path}: line {n + 1} is not what was written "
                f"({type(e).__name__}: {e}); put the file back from a copy"
            ) from None
        entries.append(entry)
    return entries


def what_to_do(step: int) -> str:
    """The end of every message about a step that is not what it was."""
    advice = "put the step back from a copy"
    if step == 0:
        return advice
    return (
        f"{advice}, or move it and all later ones out of the way with "
        f"Trajectory.set_aside({step}) and continue from step {step - 1}"
    )


def fault(directory: pathlib.Path, entry: Entry) -> str | None:
    """What a look at the files' sizes finds wrong with a step, or None."""
    folder = directory / str(entry.step)
    if folder.is_symlink():
        return "a link, not a folder"
    if not folder.is_dir():
        return "its folder is missing"
    for name, size in entry.files.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"file {name} is missing"
        if found != size:
            return f"file {name} has {found} bytes, not {size}"
    return None


def refuse_fault(directory: pathlib.Path, entry: Entry) -> None:
    """Raises CorruptCheckpoint if `fault` finds one."""
    if found := fault(directory, entry):
        raise CorruptCheckpoint(
            f"step {entry.step}: {directory / str(entry.step)}: {found}; "
            f"{what_to_do(entry.step)}"
        )


def ignored(directory: pathlib.Path, entries: list[Entry]) -> list[tuple[str, str]]:
    """(name, reason) of everything in the folder that is no committed step."""
    return [*_faulty(directory, entries), *_strays(directory, entries)]


def _faulty(directory: pathlib.Path, entries: list[Entry]) -> Iterator[tuple[str, str]]:
    for entry in entries:
        if found := fault(directory, entry):
            yield str(entry.step), found


def _strays(directory: pathlib.Path, entries: list[Entry]) -> Iterator[tuple[str, str]]:
    known = {LIST, *(str(entry.step) for entry in entries)}
    steps = manager.numbered(directory).values()
    for path in sorted(directory.iterdir()):
        if path.name not in known:
            yield path.name, _reason(path, is_number=path in steps)


def _reason(path: pathlib.Path, *, is_number: bool) -> str:
    if path.name.startswith(SET_ASIDE):
        return "set aside earlier"
    if path.name.startswith(DISCARDED) or manager.UNFINISHED in path.name:
        return "an unfinished save; the next one removes it"
    if not is_number:
        return "its name is not the number of a step"
    if path.is_symlink() or not path.is_dir():
        return "not a folder"
    if not any(path.iterdir()):
        return "an empty folder"
    if not manager.looks_whole(path, ITEMS):
        return "parts of the step are missing"
    return f"not in {LIST}: its save did not finish"


def move_aside(
    directory: pathlib.Path, entries: list[Entry], step: int, aside: pathlib.Path
) -> None:
    """Moves `step` and all later ones, and a copy of the list, into `aside`."""
    with storage_errors(aside):
        aside.mkdir()
        write_text(aside / LIST, "".join(e.line() + "\n" for e in entries))
        # Highest first and the list last: a kill in between leaves steps that are
        # listed and missing, which the same call then cleans up.
        for entry in reversed(entries[step:]):
            folder = directory / str(entry.step)
            if folder.exists() or folder.is_symlink():
                folder.rename(aside / folder.name)
        sync_folder(directory)
        write_text(directory / LIST, "".join(e.line() + "\n" for e in entries[:step]))
