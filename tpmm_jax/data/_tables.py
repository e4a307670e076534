"""Rows of tables: parquet files, saved datasets, datasets of the hub.

Only the columns that a reader asks for are converted: a date past the year 9999 in
another one is nobody's fault.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from tpmm_jax.data._strict_json import Row
from tpmm_jax.data.problems import Place, Problems
from tpmm_jax.errors import BadInput

# What save_to_disk writes beside the data.
_MARKS = ("state.json", "dataset_info.json", "dataset_dict.json")


def read_parquet(
    path: Path, source: str, columns: Collection[str], problems: Problems
) -> list[Row]:
    """The rows of a parquet file; see ``sources.read_rows``."""
    # Not through datasets.load_dataset, which first writes a copy into its cache.
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names, rows = file.schema_arrow.names, file.metadata.num_rows
            if twice := [name for name in columns if names.count(name) > 1]:
                raise BadInput(
                    f"{source}: the column {twice[0]!r} is there twice; rename or drop "
                    "one"
                )
            table = file.read(columns=[name for name in names if name in columns])
    except pyarrow.ArrowException as error:
        raise BadInput(f"{source}: not a readable parquet file: {error}") from error

    def read(name: str, start: int, stop: int) -> list[Any]:
        return table.column(name).slice(start, stop - start).to_pylist()

    return _rows(names, rows, columns, read, source, source, problems)


def is_saved(path: Path) -> bool:
    """Whether a folder seems to be written by ``datasets``' save_to_disk."""
    return any((path / mark).is_file() for mark in _MARKS)


def read_saved(
    path: Path, source: str, split: str, columns: Collection[str], problems: Problems
) -> list[Row]:
    """The rows of a folder that ``datasets`` wrote; see ``sources.read_rows``."""
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path))
    # Datasets checks neither its own JSON files nor the length of its data.
    except Exception as error:
        raise BadInput(
            f"{source}: a saved dataset that is incomplete or damaged "
            f"({type(error).__name__}: {error}); copy the whole folder again, or save "
            "it again with save_to_disk"
        ) from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise BadInput(
                f"{source}: no split {split!r}; it has {', '.join(sorted(dataset))}"
            )
        return _dataset_rows(dataset[split], source, split, columns, problems)
    held = str(dataset.split or "train")
    # "train[:3]" and "train[:3]+train[9:]" are parts of "train". The default asks for
    # whatever there is.
    parts = {part.partition("[")[0].strip() for part in held.split("+")}
    if split not in (held, "train") and parts != {split}:
        raise BadInput(
            f"{source}: holds the one split {held!r}, but {split!r} was asked for"
        )
    return _dataset_rows(dataset, source, held, columns, problems)


def read_hub(
    source: str,
    split: str,
    parts: dict[str, Any],
    columns: Collection[str],
    problems: Problems,
) -> list[Row]:
    """The rows of a hub dataset; ``parts`` are its path, name and revision."""
    import datasets

    try:
        dataset = datasets.load_dataset(**parts, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise BadInput(
            f"{source}: no such file here, and the hub gave no dataset of this name "
            f"with a split {split!r}: {error}"
        ) from error
    return _dataset_rows(dataset, source, split, columns, problems)


def _dataset_rows(
    dataset: Any, source: str, split: str, columns: Collection[str], problems: Problems
) -> list[Row]:
    def read(name: str, start: int, stop: int) -> list[Any]:
        part = dataset.select_columns([name]).select(range(start, stop))
        return [row[name] for row in part.to_list()]

    names, title = dataset.column_names, f"{source} {split}"
    return _rows(names, len(dataset), columns, read, source, title, problems)


def _rows(
    names: Sequence[str],
    count: int,
    columns: Collection[str],
    read: Callable[[str, int, int], list[Any]],
    source: str,
    title: str,
    problems: Problems,
) -> list[Row]:
    """Rows with all columns, of which those not asked for hold None.

    Args:
      read: (column, start, stop) -> values.
      source, title: what the user wrote, and what rows are called by.
      problems: where values that cannot be converted are noted; their rows are left
        out.
    """

    places = [Place(f"{title} row {row}", source, row=row) for row in range(count)]
    values, bad = {}, set[int]()
    for name in (name for name in names if name in columns and count):
        faults: dict[int, Exception] = {}
        values[name] = _converted(read, name, 0, count, faults)
        for row, error in faults.items():
            text = f"field {name!r} cannot be read: {error}"
            problems.add(places[row], text, field=name)
        bad |= faults.keys()
    empty = dict.fromkeys(names)
    return [
        Row(empty | {name: found[n] for name, found in values.items()}, places[n])
        for n in range(count)
        if n not in bad
    ]


def _converted(
    read: Callable[[str, int, int], list[Any]],
    name: str,
    start: int,
    stop: int,
    faults: dict[int, Exception],
) -> list[Any]:
    """The values of a column; one that cannot be converted is a fault of its row."""
    try:
        return read(name, start, stop)
    # Dates, time zones, encodings and extension types each fail in their own way.
    except Exception as error:
        if stop - start == 1:
            faults[start] = error
            return [None]
    middle = (start + stop) // 2
    return _converted(read, name, start, middle, faults) + _converted(
        read, name, middle, stop, faults
    )
