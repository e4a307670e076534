"""The table of ``tpmm evaluate``: a row per model, in as many parts as it needs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tpmm_jax.log.metrics import find_labels
from tpmm_jax.log.table import Column, draw_table, needed_width

_NONE = "–"
Row = Mapping[str, Any]


def comparison_table(
    measures: Sequence[Row], baseline: str, width: int
) -> RenderableType:
    """Returns the parts of the table, one below the other.

    Args:
      measures: of each model, the baseline's first; see ``loop.compare.compare``.
      baseline: its name, for the caption.
      width: in characters.
    """
    names: Column = ("model", [str(row["name"]) for row in measures])
    parts = [[names]]
    for column in _columns(measures):
        if {*column[1]} != {_NONE}:
            if len(parts[-1]) > 1 and needed_width([*parts[-1], column]) > width:
                parts.append([names])
            parts[-1].append(column)
    caption = (
        "95 % intervals over prompts; wins (ties count half), KL (nats per response) "
        f"and accuracy are against {baseline}"
    )
    tables = [draw_table(part, left=("model",)) for part in parts]
    return Group(*(x for table in tables for x in (table, Text())), Text(caption))


def _columns(measures: Sequence[Row]) -> list[Column]:
    labels = find_labels(measures, "score/", "/mean")
    judges = find_labels(measures, "judge/", "/win/baseline")
    wanted = [
        ("reward", "reward/mean", "reward", 3),
        ("win", "win/baseline", "win/baseline", 3),
        ("KL", "kl/baseline", "kl/baseline", 2),
        ("length", "length/mean", "", 1),
        ("cut", "length/cut", "", 2),
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
        # Shares of its verdicts that turn with the order, and that are none.
        for fault in ("disagreed", "unread"):
            wanted.append((f"{label} {fault}", f"judge/{label}/{fault}", "", 2))
    wanted.append(("pairs acc.", "heldout/accuracy", "heldout/accuracy", 3))
    wanted.append(("pairs margin", "heldout/margin", "", 2))
    return [
        (title, [_cell(row, mean, bounds, digits) for row in measures])
        for title, mean, bounds, digits in wanted
    ]


def _cell(row: Row, mean: str, bounds: str, digits: int) -> str:
    if mean not in row:
        return _NONE
    text = f"{row[mean]:.{digits}f}"
    low, high = row.get(f"{bounds}/low"), row.get(f"{bounds}/high")
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return text
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"
