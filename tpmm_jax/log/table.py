"""Tables of text, and the one of iterations, laid out for the width at hand."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from tpmm_jax.log.pair_counts import pair_counts
from tpmm_jax.log.progress import clock_text

Row = Mapping[str, Any]
Column = tuple[str, Sequence[str]]
_NONE = "–"
_GAP = 2

# What is given up, one after another, until the table fits: a column, the intervals of
# the win rates, or the merge weights of a cell but so many.
_GIVEN_UP: tuple[str | int, ...] = (
    "spread", 3, "pairs", "train margin", "intervals", "train acc.", 2, "vs θ0",
    "length", "time", 1, "of the mean", "reference", "held-out", "KL", "win prev",
    "win θ0",
)  # fmt: skip
# Whether an earlier version of the scorer labelled the iteration's pairs.
_EARLIER = "labels/earlier_scorer"
# Title -> metric, a share with its interval.
_SHARES = {
    "win θ0": "win/theta_0",
    "win prev": "win/previous",
    "held-out": "heldout/accuracy",
}


def iteration_table(rows: Sequence[Row], width: int) -> Table:
    """Lay out one row per iteration, in at most `width` columns.

    Args:
        rows: of kind "iteration", sorted. Read here, each optional but the first:
            iteration; reward/mean, reward/low, reward/high; ship/reward/mean, of the
            mean of all policies; reward/spread; win/theta_0
            and win/previous (shares) with /low and /high; kl/theta_0 (nats a response);
            length/mean (tokens), shown where there is no reward; heldout/accuracy with
            /low and /high; pairs/train_accuracy, a dash where nothing is left of it;
            rewards/margins, of training too; merge/rule (a string); merge/weight_0,
            merge/weight_1, ...; pairs; what pair_counts reads; watch (warnings);
            labels/earlier_scorer; seconds.
        width: in characters.
    """
    rules = {row["merge/rule"] for row in rows if "merge/rule" in row}
    rewarded = any("reward/mean" in row for row in rows)

    def references(most: int | None = None) -> list[str]:
        return [_reference(row, most, len(rules) > 1) for row in rows]

    cells = {
        "iter": [_iteration(row) for row in rows],
        "reward (95 %)": _rewards(rows),
        "of the mean": _numbers(rows, "ship/reward/mean"),
        "spread": _numbers(rows, "reward/spread"),
        "vs θ0": _changes(rows),
        **{
            title: [_share(row, metric, whole=True) for row in rows]
            for title, metric in _SHARES.items()
        },
        "KL": _numbers(rows, "kl/theta_0"),
        "length": [] if rewarded else _numbers(rows, "length/mean"),
        "train margin": _numbers(rows, "rewards/margins"),
        "train acc.": [_share(row, "pairs/train_accuracy") for row in rows],
        "reference": references(),
        "pairs": [f"{row['pairs']:,}" if "pairs" in row else _NONE for row in rows],
        "time": [
            clock_text(row["seconds"]) if "seconds" in row else _NONE for row in rows
        ],
    }
    known = {title for title, column in cells.items() if {*column} - {_NONE}}
    if "train margin" in known:
        known.add("train acc.")  # dashes: no step is left of it
    cells = {title: column for title, column in cells.items() if title in known}
    titles = list(cells)
    for given_up in _GIVEN_UP:
        if needed_width(cells.items()) <= width:
            break
        if given_up == "intervals":
            for title in _SHARES.keys() & cells.keys():
                cells[title] = [_share(row, _SHARES[title]) for row in rows]
        elif isinstance(given_up, str):
            cells.pop(given_up, None)
        elif "reference" in cells:
            cells["reference"] = references(given_up)
    caption = _caption(rows, cells, rules, titles)
    return draw_table(cells.items(), left=("reference",), caption=caption)


def needed_width(columns: Collection[Column]) -> int:
    """Returns the characters that a table of whole cells takes."""
    widths = [max(map(len, [title, *cells])) for title, cells in columns]
    return sum(widths) + _GAP * (len(widths) - 1)


def draw_table(
    columns: Collection[Column], *, left: Collection[str], caption: str = ""
) -> Table:
    """Returns (title, cells) of each column as a table, numbers on the right.

    Args:
        left: titles of columns of words, which wrap where there is no room.
        caption: below the table.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, _GAP - 1, 0, 0),  # the box adds one between columns
        pad_edge=False,
        collapse_padding=True,
        caption=Text(caption, style="dim") if caption else None,
        caption_justify="left",
        header_style="bold",
    )
    for title, _ in columns:
        if title in left:
            table.add_column(title, overflow="fold")
        else:
            table.add_column(title, justify="right", no_wrap=True)
    for line in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*(Text(cell) for cell in line))
    return table


def _caption(
    rows: Sequence[Row],
    columns: Mapping[str, Sequence[str]],
    rules: set[str],
    titles: Sequence[str],
) -> str:
    parts = []
    if "reference" in columns and rules:
        weighted = "merge weights; " if len(rules) > 1 else ""
        named = next(iter(rules)) if len(rules) == 1 else ""
        parts.append(f"reference: {weighted}{named}".rstrip("; "))
    if "KL" in columns:
        parts.append("KL: to θ0, nats per response")
    if "win θ0" in columns:
        parts.append("win: a tie counts half")
    if "held-out" in columns:
        parts.append("held-out: accuracy against θ0")
    if any(row.get("watch") for row in rows):
        parts.append("!: warned")
    if any(row.get(_EARLIER) for row in rows):
        parts.append("*: labelled by an earlier version of the scorer")
    lines, width = list[str](), needed_width(columns.items())
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 3 <= width:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    if missing := [title for title in titles if title not in columns]:
        lines.append(f"no room for: {', '.join(missing)}")
    last = rows[-1] if rows else {}
    if counts := pair_counts(last):
        lines.append(f"pairs of iteration {last['iteration']}: {counts}")
    if "length/cut" in last:
        lines.append(f"evaluation: {100 * last['length/cut']:.0f} % of the answers cut")
    return "\n".join(lines)


def _iteration(row: Row) -> str:
    marks = "!" * bool(row.get("watch")) + "*" * bool(row.get(_EARLIER))
    return f"{row['iteration']}{marks}"


def _reference(row: Row, most: int | None, named: bool) -> str:
    """Such as "learned θ0 .12 θ1 .30 θ2 .58", or its `most` largest weights."""
    weights: list[tuple[int, float]] = []
    while f"merge/weight_{len(weights)}" in row:
        weights.append((len(weights), row[f"merge/weight_{len(weights)}"]))
    # A one-hot weight is that checkpoint; zeros say nothing.
    weights = [(k, weight) for k, weight in weights if abs(weight) >= 0.005]
    kept = weights
    if most is not None and most < len(weights):
        kept = sorted(sorted(weights, key=lambda item: -item[1])[:most])
    words = [row["merge/rule"]] if named and "merge/rule" in row else []
    if len(weights) == 1 and weights[0][1] == 1:
        words.append(f"θ{weights[0][0]}")
    else:
        words += [f"θ{k} {_fraction(weight)}" for k, weight in kept]
    if len(kept) < len(weights):
        words.append(f"+{len(weights) - len(kept)}")
    return " ".join(words) or row.get("merge/rule", _NONE)


def _fraction(weight: float) -> str:
    text = f"{weight:.2f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _rewards(rows: Sequence[Row]) -> list[str]:
    """Means with intervals, with as many decimals as the intervals leave sense in."""
    digits = _digits(rows)
    even = all(
        abs(row["reward/high"] + row["reward/low"] - 2 * row["reward/mean"])
        <= 0.3 * (row["reward/high"] - row["reward/low"])
        for row in rows
        if _finite(row, "reward/low", "reward/mean", "reward/high")
    )

    def cell(row: Row) -> str:
        if not _finite(row, "reward/mean"):
            return str(row.get("reward/mean", _NONE))
        mean = f"{row['reward/mean']:z.{digits}f}"
        if not _finite(row, "reward/low", "reward/high"):
            return mean
        low, high = row["reward/low"], row["reward/high"]
        if even:
            return f"{mean} ± {(high - low) / 2:.{digits}f}"
        return f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"

    return [cell(row) for row in rows]


def _digits(rows: Sequence[Row]) -> int:
    """Decimals that show the typical half interval as 2 to 19 units of the last."""
    halves = [
        (row["reward/high"] - row["reward/low"]) / 2
        for row in rows
        if _finite(row, "reward/low", "reward/high")
    ]
    typical = statistics.median(halves) if halves else 0.0
    return min(4, max(0, math.ceil(math.log10(2 / typical)))) if typical > 0 else 2


def _changes(rows: Sequence[Row]) -> list[str]:
    """Differences of the means from that of iteration 0."""
    digits = _digits(rows)
    base = [
        row for row in rows if row["iteration"] == 0 and _finite(row, "reward/mean")
    ]
    return [
        f"{row['reward/mean'] - base[0]['reward/mean']:+z.{digits}f}"
        if base and row["iteration"] > 0 and _finite(row, "reward/mean")
        else _NONE
        for row in rows
    ]


def _numbers(rows: Sequence[Row], name: str) -> list[str]:
    """One column of numbers with the same decimals: three digits for the largest."""
    finite = [abs(row[name]) for row in rows if _finite(row, name)]
    digits = 2 if max(finite, default=0.0) < 10 else 1
    return [f"{row[name]:z.{digits}f}" if name in row else _NONE for row in rows]


def _share(row: Row, name: str, *, whole: bool = False) -> str:
    """Such as "82 %" or, whole, "82 % [76, 88]"."""
    if not _finite(row, name):
        return _NONE
    text = f"{100 * row[name]:.0f} %"
    if not whole or not _finite(row, f"{name}/low", f"{name}/high"):
        return text
    low, high = (100 * row[f"{name}/{end}"] for end in ("low", "high"))
    return f"{text} [{low:.0f}, {high:.0f}]"


def _finite(row: Row, *names: str) -> bool:
    return all(name in row and math.isfinite(row[name]) for name in names)
