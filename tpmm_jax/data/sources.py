"""Rows from a file, a saved dataset or the hub."""

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tpmm_jax.data.problems import Place, Problems
from tpmm_jax.data.strict_json import (
    Row,
    read_json_document,
    read_json_lines,
    read_text_lines,
)
from tpmm_jax.errors import BadInput

__all__ = ["Row", "read_rows"]

READERS: dict[str, Callable[[Path, str, Problems], list[Row]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json_document,
    ".txt": read_text_lines,
}
_SUFFIXES = ".jsonl, .ndjson, .json, .txt (each also .gz) or .parquet"
_HUB_NAME = re.compile(
    r"(?P<path>[\w-][\w.-]*/[\w-][\w.-]*)"
    r"(?::(?P<name>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
)


def read_rows(
    source: str, *, split: str = "train", problems: Problems | None = None
) -> list[Row]:
    """Read all rows of a source into host memory.

    Args:
      source: a .jsonl, .json or .txt file (also .gz), a .parquet file, a folder
        written by ``datasets``' save_to_disk, or a hub name
        "org/name[:configuration][@revision]".
      split: the split of a dataset; a file has the split "train" alone.
      problems: where defects are gathered; the caller then settles them. Without
        it they are raised here.

    Returns:
      The rows in file order, each with its origin.

    Raises:
      BadInput: the source is missing or of an unknown kind; or, without
        ``problems``, some rows are malformed: all of them are listed.
    """
    found = Problems(source) if problems is None else problems
    path = Path(source).expanduser()
    if path.is_file():
        rows = _read_file(path, source, split, found)
    elif path.is_dir():
        rows = _read_saved(path, source, split)
    elif not _suffix(path) and (match := _HUB_NAME.fullmatch(source)):
        rows = _read_hub(source, split, match.groupdict())
    else:
        raise BadInput(_missing(path, source))
    if problems is None:
        found.settle()
    if not rows and not found.origins():
        raise BadInput(f"{source}: there are no rows in it; wanted one or more")
    return rows


def _suffix(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    known = suffixes and (suffixes[-1] in READERS or suffixes[-1] == ".parquet")
    return suffixes[-1] if known else ""


def _read_file(path: Path, source: str, split: str, problems: Problems) -> list[Row]:
    suffix = _suffix(path)
    if not suffix:
        raise BadInput(f"{source}: unknown kind of file; wanted {_SUFFIXES}")
    if split != "train":
        raise BadInput(
            f"{source}: a file has one split, 'train', but {split!r} was asked for; "
            "name the file of that split instead"
        )
    try:
        if suffix == ".parquet":
            return _read_parquet(path, source)
        return READERS[suffix](path, source, problems)
    except OSError as error:
        raise BadInput(f"{source}: cannot be read: {error}") from error


def _read_parquet(path: Path, source: str) -> list[Row]:
    # Not through datasets.load_dataset, which first writes a copy into its cache.
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise BadInput(f"{source}: not a readable parquet file: {error}") from error
    return _with_origins(rows, source)


def _read_saved(path: Path, source: str, split: str) -> list[Row]:
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(
            f"{source}: a folder, but not one written by datasets' save_to_disk "
            f"({error}). Name a file in it: {_listing(path)}"
        ) from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise BadInput(
                f"{source}: no split {split!r}; it has {', '.join(sorted(dataset))}"
            )
        dataset = dataset[split]
    elif split != str(dataset.split or "train"):
        raise BadInput(
            f"{source}: holds the one split {str(dataset.split or 'train')!r}, but "
            f"{split!r} was asked for"
        )
    return _with_origins(dataset.to_list(), source, split)


def _read_hub(source: str, split: str, parts: dict[str, Any]) -> list[Row]:
    import datasets

    try:
        dataset = datasets.load_dataset(**parts, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise BadInput(
            f"{source}: no such file here, and the hub gave no dataset of this name "
            f"with a split {split!r}: {error}"
        ) from error
    return _with_origins(dataset.to_list(), source, split)


def _with_origins(
    rows: list[dict[str, Any]], source: str, split: str | None = None
) -> list[Row]:
    name = source if split is None else f"{source} {split}"
    return [
        Row(data, Place(f"{name} row {number}", source, row=number))
        for number, data in enumerate(rows)
    ]


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
        f"{source}: no such file; in {folder} {hint}. "
        f"Wanted {_SUFFIXES}, a saved dataset's folder, or a hub name org/name"
    )


def _listing(folder: Path) -> str:
    names = [e.name for e in sorted(folder.iterdir()) if _suffix(e)]
    return ", ".join(names[:5]) or "no file of a known kind"
