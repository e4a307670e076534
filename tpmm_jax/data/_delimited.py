"""CSV and TSV: a header, then rows of texts, in which quoted line breaks may stand.

Python's own reader, strictly: pyarrow's and pandas' turn cells such as NA, 1e3 or true
into something else than the text that stands there.
"""

import contextlib
import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tpmm_jax.data._strict_json import Row
from tpmm_jax.data._text_files import MAX_ROW_BYTES, read_document, too_long
from tpmm_jax.data.problems import Place, Problems, at_line

_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


def read_csv(path: Path, name: str, problems: Problems) -> list[Row]:
    """Rows of texts, each with the line on which it begins."""
    return _read(path, name, problems, ",")


def read_tsv(path: Path, name: str, problems: Problems) -> list[Row]:
    """The same with tabs between the cells; quotes as in CSV."""
    return _read(path, name, problems, "\t")


def _read(path: Path, name: str, problems: Problems, delimiter: str) -> list[Row]:
    text = read_document(path, name, problems)
    if text is None:
        return []
    with _long_cells():
        rows = _cells(text, name, problems, delimiter)
        origin, header = next(rows, (Place(name), []))
        if fault := _header_fault(header, delimiter):
            problems.add(origin, fault, fatal=True)
            return []
        body = list(rows)
        if delimiter == "\t" and (fault := _quoting_fault(text, header, body)):
            problems.add(origin, fault, fatal=True)
            return []
        # pandas writes its row numbers under no name.
        columns = [column or f"column {n}" for n, column in enumerate(header, 1)]
        return [
            Row(dict(zip(columns, cells)), origin)
            for origin, cells in body
            if _fits(cells, header, origin, problems)
        ]


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Let cells be as long as a row may be; the limit belongs to the process."""
    before = csv.field_size_limit(MAX_ROW_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _cells(
    text: str, name: str, problems: Problems, delimiter: str
) -> Iterator[tuple[Place, list[str]]]:
    """(origin, cells) of each row, the header first; blank ones are counted.

    A fault within a line concerns that row. Behind one that spans lines nobody knows
    where rows begin, so it concerns the whole file.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    blank = 0
    while True:
        first = reader.line_num + 1
        origin = at_line(name, first)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            cut = str(error) == "unexpected end of data"
            said = "a quoted cell that begins here never ends" if cut else str(error)
            spans = cut or reader.line_num > first
            problems.add(
                origin,
                f"not CSV: {said}; a cell with quotes, separators or line breaks is "
                'quoted, and a quote in it doubled ("")',
                fatal=spans,
            )
            if spans:
                return
            continue
        if cells is None:
            return
        if not cells or (len(cells) > 1 and not any(cells)):
            blank += 1
            continue
        problems.counts["blank_lines"] += blank
        blank = 0
        yield origin, cells


def _header_fault(header: list[str], delimiter: str) -> str:
    """What is wrong with the names of columns; "" if nothing."""
    if twice := [n for n, count in Counter(header).items() if n and count > 1]:
        return f"the column {twice[0]!r} is there twice; rename or drop one"
    others = [mark for mark in _NAMES if mark != delimiter and mark in "".join(header)]
    if len(header) == 1 and others:
        return (
            f"the header is one column, {header[0]!r}, as if {_NAMES[others[0]]} "
            f"separated cells; wanted {_NAMES[delimiter]}: .csv has commas, .tsv tabs"
        )
    return ""


def _quoting_fault(
    text: str, header: list[str], rows: list[tuple[Place, list[str]]]
) -> str:
    """What is wrong where quotes seem to be part of the texts; "" if nothing.

    Without quoting every line is a row. Read with it, a text that begins with a quote
    takes in whole rows, up to the next quote at the end of a cell.
    """
    if not any("\n" in cell or "\r" in cell for _, cells in rows for cell in cells):
        return ""
    lines = filter(None, text.replace("\r", "\n").split("\n"))
    if any(line.count("\t") + 1 != len(header) for line in lines):
        return ""
    return (
        f"every line holds {len(header)} cells if quotes are part of the texts, and "
        "some rows go over several lines if they are not; write cells with quotes in "
        'quotes and double those in them (""), or write JSON Lines'
    )


def _fits(
    cells: list[str], header: list[str], origin: Place, problems: Problems
) -> bool:
    fault = ""
    if len(cells) != len(header):
        fault = f"the row has {len(cells)} cells, the header {len(header)}"
    elif [cell.removeprefix("\ufeff") for cell in cells] == header:
        fault = "the row repeats the header, as files put together do; remove it"
    elif sum(len(cell.encode()) for cell in cells) > MAX_ROW_BYTES:
        fault = f"the row is {too_long()}"
    if fault:
        problems.add(origin, fault)
    return not fault
