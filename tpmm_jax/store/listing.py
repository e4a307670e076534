"""trajectory.jsonl: which steps are committed, and is each still whole?"""

import json
import pathlib
from dataclasses import dataclass

from tpmm_jax.errors import CorruptCheckpoint
from tpmm_jax.store.files import canonical_json, read_lines_repaired, sha256

LIST = "trajectory.jsonl"
ITEMS = ("policy", "meta", "integrity")


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
    repair_it = (
        f"or run `tpmm repair {directory.parent}`, which writes the line from the "
        "step's own record"
    )
    try:
        lines = read_lines_repaired(path, truncate=repair)
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(f"{error}, {repair_it}") from None
    entries = []
    for n, line in enumerate(lines):
        try:
            entry = Entry.parse(line)
            if entry.step != n:
                raise ValueError(f"it is step {entry.step}, wanted {n}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise CorruptCheckpoint(
                f"{path}: line {n + 1} is not what was written "
                f"({type(e).__name__}: {e}); restore the file from a copy, {repair_it}"
            ) from None
        entries.append(entry)
    return entries


def what_to_do(directory: pathlib.Path, step: int) -> str:
    """The end of every message about a step that is not what it was."""
    advice = "restore the step from a copy"
    if step == 0:
        return advice
    return (
        f"{advice}, or give up this step and all later ones: `tpmm repair "
        f"{directory.parent} --give-up {step}` moves them aside, and the run continues "
        f"from step {step - 1}"
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
            f"{what_to_do(directory, entry.step)}"
        )
