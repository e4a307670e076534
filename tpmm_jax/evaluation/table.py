"""The table of ``tpmm evaluate``: a row a model, in as many parts as the width asks."""

import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

_GAP = "  "
_NONE = "–"
Row = Mapping[str, Any]


def comparison_lines(
    measures: Sequence[Row], baseline: str, width: int | None = None
) -> list[str]:
    """Returns lines of text.

    Args:
      measures: of each model, the baseline's first; see ``loop.compare.compare``.
      baseline: its name, for the caption.
      width: in characters; by default the terminal's.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    columns = [
        (title, cells)
        for title, cells in _columns(measures)
        if any(cell != _NONE for cell in cells)
    ]
    names = ["model", *(str(row["name"]) for row in measures)]
    lines: list[str] = []
    for part in _parts(columns, width - max(map(len, names))):
        table = [names, *([title, *cells] for title, cells in part)]
        widths = [max(map(len, column)) for column in table]
        rows = [
            _GAP.join(
                cell.ljust(w) if at == 0 else cell.rjust(w)
                for at, (cell, w) in enumerate(zip(line, widths))
            )
            for line in zip(*table)
        ]
        lines += [rows[0], "─" * len(rows[0]), *rows[1:], ""]
    lines.append(
        "95 % intervals over prompts; wins (ties count half), KL (nats a response) and "
        f"accuracy are against {baseline}"
    )
    return lines


def _parts(
    columns: Sequence[tuple[str, list[str]]], room: int
) -> list[list[tuple[str, list[str]]]]:
    parts: list[list[tuple[str, list[str]]]] = [[]]
    left = room
    for title, cells in columns:
        needed = len(_GAP) + max(map(len, [title, *cells]))
        if parts[-1] and needed > left:
            parts.append([])
            left = room
        parts[-1].append((title, cells))
        left -= needed
    return parts


def _columns(measures: Sequence[Row]) -> list[tuple[str, list[str]]]:
    labels = _found(measures, "score/", "/mean")
    judges = _found(measures, "judge/", "/win/baseline")
    wanted = [
        ("reward", "reward/mean", "reward", 3),
        ("win", "win/baseline", "win/baseline", 3),
        ("KL", "kl/baseline", "kl/baseline", 2),
        ("length", "length/mean", "", 1),
        ("distinct-1", "distinct/1", "", 3),
        ("distinct-2", "distinct/2", "", 3),
    ]
    for label in labels:
        head = f"score/{label}"
        wanted.append((label, f"{head}/mean", head, 3))
        win = f"{head}/win/baseline"
        wanted.append((f"{label} win", win, win, 3))
    for label in judges:
        win = f"judge/{label}/win/baseline"
        wanted.append((f"judge {label}", win, win, 3))
    wanted.append(("acc.", "heldout/accuracy", "heldout/accuracy", 3))
    wanted.append(("margin", "heldout/margin", "", 2))
    return [
        (title, [_cell(row, mean, bounds, digits) for row in measures])
        for title, mean, bounds, digits in wanted
    ]


def _found(measures: Sequence[Row], head: str, tail: str) -> list[str]:
    names = dict.fromkeys(name for row in measures for name in row)
    return [
        name[len(head) : -len(tail)]
        for name in names
        if name.startswith(head)
        and name.endswith(tail)
        and name.count("/") == (1 + tail.count("/"))
    ]


def _cell(row: Row, mean: str, bounds: str, digits: int) -> str:
    if mean not in row:
        return _NONE
    text = f"{row[mean]:.{digits}f}"
    low, high = row.get(f"{bounds}/low"), row.get(f"{bounds}/high")
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return text
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"
