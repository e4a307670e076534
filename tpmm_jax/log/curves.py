"""The tables of ``tpmm best_of_n``: one a curve, a row an n."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tpmm_jax.log.table import Column, draw_table, needed_width

Row = Mapping[str, Any]
# Titles of columns and what they show; given up from the last on until the table fits.
_TITLES = {
    "proxy": "proxy",
    "gold": "gold",
    "gain": "over n = 1",
    "lead": "over first",
}


def curve_tables(curves: Sequence[Row], width: int) -> RenderableType:
    """Returns the tables, one below the other, each with what it says in words.

    Args:
      curves: of ``loop.pools.measure_pools``.
      width: in characters.
    """
    parts: list[RenderableType] = []
    for curve in curves:
        head = f"{curve['policy']}, best of n by {curve['proxy']}"
        table = draw_table(_columns(curve["rows"], width), left=())
        parts += [Text(head, style="bold"), table, Text(sentence(curve)), Text()]
    first = f"{curves[0]['policy']} by {curves[0]['proxy']}"
    lead = f"; over first: gold minus that of {first}" if len(curves) > 1 else ""
    caption = "95 % intervals over prompts; KL: at most this, nats per response"
    return Group(*parts, Text(caption + lead))


def sentence(curve: Row) -> str:
    """Returns what a curve says in words, as a sentence."""
    text = str(curve["words"])
    return f"{text[:1].upper()}{text[1:]}."


def shown(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of 1, 2, 4, ... and the last one."""
    last = len(rows) - 1
    return [r for i, r in enumerate(rows) if i == last or r["n"] & (r["n"] - 1) == 0]


def _columns(rows: Sequence[Row], width: int) -> list[Column]:
    some = shown(rows)
    columns: list[Column] = [
        ("n", [str(row["n"]) for row in some]),
        ("KL", [f"{row['kl_bound']:.2f}" for row in some]),
    ]
    wanted = {k: v for k, v in _TITLES.items() if any(k in row for row in some)}
    made = {name: cells(some, name) for name in wanted}
    short = {name: cells(some, name, intervals=False) for name in wanted}
    # Intervals of the levels go first: prompts differ, and the differences say more.
    for name in ("", "proxy", "gold", "lead", "gain"):
        if name:
            made[name] = short.get(name, [])
        found = [(wanted[k], made[k]) for k in wanted]
        if needed_width([*columns, *found]) <= width:
            break
    return [*columns, *found]


def cells(rows: Sequence[Row], name: str, *, intervals: bool = True) -> list[str]:
    """Returns a column of numbers with intervals, all with the same decimals."""
    sign = "+" if name in ("gain", "lead") else ""
    halves = [
        (row[f"{name}/high"] - row[f"{name}/low"]) / 2
        for row in rows
        if name in row and math.isfinite(row[f"{name}/high"] - row[f"{name}/low"])
    ]
    typical = sorted(halves)[len(halves) // 2] if halves else 0.0
    digits = 3
    if typical > 0:
        digits = min(6, max(0, math.ceil(math.log10(2 / typical))))
    found = []
    for row in rows:
        if name not in row:
            found.append("–")
            continue
        text = f"{row[name]:{sign}.{digits}f}"
        low, high = row[f"{name}/low"], row[f"{name}/high"]
        if intervals and math.isfinite(high - low):
            text += f" [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
        found.append(text)
    return found
