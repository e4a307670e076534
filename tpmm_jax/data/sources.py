"""Rows from a file, a saved dataset or the hub."""

import difflib
import glob
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

from tpmm_jax.data._delimited import read_csv, read_tsv
from tpmm_jax.data._strict_json import (
    Row,
    read_json_document,
    read_json_lines,
    read_text_lines,
)
from tpmm_jax.data._tables import is_saved, read_hub, read_parquet, read_saved
from tpmm_jax.data._text_files import COMPRESSED
from tpmm_jax.data.pointers import refuse_pointer
from tpmm_jax.data.problems import Problems
from tpmm_jax.errors import BadInput, refuse_address

__all__ = ["Row", "read_rows"]

READERS: dict[str, Callable[[Path, str, Problems], list[Row]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json_document,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".txt": read_text_lines,
}
_SUFFIXES = (
    ".jsonl, .ndjson, .json, .csv, .tsv, .txt (each also .gz or .zst) or .parquet"
)
_HUB_NAME = re.compile(
    r"(?P<path>[\w-][\w.-]*/[\w-][\w.-]*)"
    r"(?::(?P<name>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
)


def read_rows(
    source: str,
    *,
    split: str = "train",
    columns: Collection[str] = (),
    problems: Problems | None = None,
) -> list[Row]:
    """Read all rows of a source into host memory.

    Args:
      source: a .jsonl, .json, .csv, .tsv or .txt file (also .gz or .zst), a .parquet
        file, a folder written by ``datasets``' save_to_disk, a pattern of files such as
        "pairs-*.jsonl", read in the order of their names, or a hub name
        "org/name[:configuration][@revision]".
      split: the split of a dataset; a file has the split "train" alone, and a saved
        dataset of one split serves as "train".
      columns: of a table, those whose values are wanted; its others hold None. Rows
        of JSON hold all they have.
      problems: where defects are gathered; the caller then settles them. Without
        it they are raised here.

    Returns:
      The rows in file order, each with its origin.

    Raises:
      BadInput: the source is missing or of an unknown kind; or, without
        ``problems``, some rows are malformed: all of them are listed.
    """
    refuse_address(source, "data")
    found = Problems(source) if problems is None else problems
    try:
        rows = []
        for name in _matches(source):
            known = len(found.found)
            some = _read(name, split, columns, found)
            if not some and len(found.found) == known:
                raise BadInput(f"{name}: there are no rows in it; wanted one or more")
            rows += some
    # A name too long, a folder that may not be looked into, a disk that fails.
    except OSError as error:
        raise BadInput(f"{source}: cannot be read: {error}") from error
    if problems is None:
        found.settle()
    return rows


def _matches(source: str) -> list[str]:
    """The files of a pattern, by name; any other source as it is."""
    if not glob.has_magic(source) or Path(source).exists():
        return [source]
    found = glob.glob(os.path.expanduser(source), recursive=True)
    files = [name for name in found if is_saved(Path(name)) or Path(name).is_file()]
    if not files:
        folder = next(p for p in Path(source).parents if not glob.has_magic(str(p)))
        there = f"in {folder} there is {_listing(folder)}" if folder.is_dir() else ""
        raise BadInput(
            f"{source}: no file matches this pattern; "
            + (there or f"the folder {folder} does not exist")
        )
    return sorted(files)


def _read(
    source: str, split: str, columns: Collection[str], problems: Problems
) -> list[Row]:
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:
        raise BadInput(f"{source}: cannot be read: {error}") from error
    suffix = _suffix(path)
    if path.is_dir():
        if not is_saved(path):
            raise BadInput(
                f"{source}: a folder, but not one written by datasets' save_to_disk; "
                f"name a file in it: {_listing(path)}"
            )
        return read_saved(path, source, split, columns, problems)
    if not path.is_file():
        if not suffix and (match := _HUB_NAME.fullmatch(source)):
            return read_hub(source, split, match.groupdict(), columns, problems)
        if path.exists():
            raise BadInput(
                f"{source}: a pipe or a device, which cannot be read twice; write what "
                f"comes from it to a file ({_SUFFIXES})"
            )
        raise BadInput(_missing(path, source))
    if not suffix:
        raise BadInput(f"{source}: unknown kind of file; wanted {_SUFFIXES}")
    if split != "train":
        raise BadInput(
            f"{source}: a file has one split, 'train', but {split!r} was asked for; "
            "name the file of that split instead"
        )
    refuse_pointer(path)
    if suffix == ".parquet":
        return read_parquet(path, source, columns, problems)
    return READERS[suffix](path, source, problems)


def _suffix(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes[-1:] and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    known = suffixes and (suffixes[-1] in READERS or suffixes[-1] == ".parquet")
    return suffixes[-1] if known else ""


def _missing(path: Path, source: str) -> str:
    folder = path.parent
    if not folder.is_dir():
        while not folder.is_dir():
            folder = folder.parent
        return (
            f"{source}: the folder {path.parent} does not exist; {folder} does. "
            "A dataset of the hub is written org/name"
        )
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}" if near else f"there is {_listing(folder)}"
    return (
        f"{source}: no such file; in {folder.absolute()} {hint}. "
        f"Wanted {_SUFFIXES}, a saved dataset's folder, or a hub name org/name"
    )


def _listing(folder: Path) -> str:
    names = [e.name for e in sorted(folder.iterdir()) if _suffix(e)]
    return ", ".join(names[:5]) or "no file of a known kind"
