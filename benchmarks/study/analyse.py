"""Tables and figures of a study, from the files of its cells.

The unit of every interval is the seed: a mean over S seeds, or over the S differences
to the baseline on the same seed (same prompts, same first rollouts, same random keys),
with Student's 95 % interval of S - 1 degrees of freedom. Few seeds make it wide, as it
should be: two runs that differ only by rounding part as runs on two seeds do.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
from grid import SEED, Cell, Grid
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.report.figures import COLOURS
from tpmm_jax.store.files import write_json, write_text

DASHES = ("-", "--", ":")

# level of panels -> level of lines -> seed -> values by iteration
Curves = dict[str, dict[str, dict[str, list[float]]]]


def write_results(
    grid: Grid, cells: Sequence[Cell], workdir: pathlib.Path
) -> list[pathlib.Path]:
    """Writes results.json, results.md and the figures of all finished cells."""
    reward = gather(grid, cells, workdir, "reward/mean")
    kl = gather(grid, cells, workdir, "kl/theta_0")
    if not any(reward.values()):
        return []
    paths = [
        workdir / n for n in ("results.json", "results.md", "reward.png", "last.png")
    ]
    write_json(paths[0], {"reward": reward, "kl": kl})
    tables = [table(grid, panel, reward[panel], kl[panel]) for panel in reward]
    write_text(paths[1], "\n\n".join(tables) + "\n")
    plot_curves(grid, reward, paths[2])
    plot_last(grid, reward, paths[3])
    return paths


def gather(
    grid: Grid, cells: Sequence[Cell], workdir: pathlib.Path, name: str
) -> Curves:
    """Returns one metric of every finished cell, by iteration."""
    curves: Curves = {panel: {} for panel in grid.axes[grid.panels]}
    for cell in cells:
        rows = iteration_rows(workdir / "cells" / cell.name)
        if len(rows) != grid.load(cell).iterations + 1:
            continue
        lines = curves[cell.levels[grid.panels]].setdefault(cell.levels[grid.lines], {})
        lines[cell.levels[SEED]] = [row[name] for row in rows]
    return curves


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean over seeds and Student's 95 % interval."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, -math.inf, math.inf
    half = scipy.stats.t.ppf(0.975, count - 1) * scipy.stats.sem(values)
    return mean, mean - float(half), mean + float(half)


def differences(
    line: dict[str, list[float]], baseline: dict[str, list[float]]
) -> list[float]:
    """Returns last-iteration differences on the seeds that both have."""
    return [line[s][-1] - baseline[s][-1] for s in line if s in baseline]


def table(
    grid: Grid,
    panel: str,
    reward: dict[str, dict[str, list[float]]],
    kl: dict[str, dict[str, list[float]]],
) -> str:
    """Returns the Markdown table of one panel."""
    last = (
        max((len(c) for line in reward.values() for c in line.values()), default=1) - 1
    )
    head = [
        grid.lines, *(f"{t}" for t in range(last + 1)), f"at {last}, 95 %",
        f"minus {grid.baseline}, 95 %", "best to last", "KL", "seeds",
    ]  # fmt: skip
    rows = [head, ["---"] * len(head)]
    for name, line in reward.items():
        curves = np.array(list(line.values()))
        _, low, high = interval(curves[:, -1])
        gap = differences(line, reward.get(grid.baseline, {}))
        rows.append(
            [
                name,
                *(f"{x:.2f}" for x in curves.mean(axis=0)),
                bounds(low, high),
                "" if name == grid.baseline or not gap else difference(gap),
                f"{(curves[:, -1] - curves.max(axis=1)).mean():+.2f}",
                f"{np.mean([c[-1] for c in kl[name].values()]):.1f}",
                ", ".join(f"{c[-1]:.2f}" for c in line.values()),
            ]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"**{grid.panels} {panel}**", "", *lines])


def bounds(low: float, high: float) -> str:
    """An interval as text."""
    return f"[{low:.2f}, {high:.2f}]" if math.isfinite(low) else "one seed"


def difference(values: Sequence[float]) -> str:
    """A mean difference with its interval as text."""
    mean, low, high = interval(values)
    if not math.isfinite(low):
        return f"{mean:+.2f}"
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of the index-th line."""
    colours = len(COLOURS)
    dash = DASHES[index // colours % len(DASHES)]
    return {"color": COLOURS[index % colours], "linestyle": dash}


def canvas(panels: int, height: float) -> tuple[Figure, list[Any]]:
    """Returns a figure with panels side by side."""
    figure = Figure(figsize=(4.6 * panels + 1.5, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def plot_curves(grid: Grid, reward: Curves, path: pathlib.Path) -> None:
    """Draws the mean over seeds by iteration, and each seed thinly behind it."""
    figure, axes = canvas(len(reward), 4.4)
    order = list(grid.axes[grid.lines])
    for one, (panel, lines) in zip(axes, reward.items()):
        for name, line in lines.items():
            look = style(order.index(name))
            curves = np.array(list(line.values()))
            one.plot(curves.T, linewidth=0.7, alpha=0.3, **look)
            one.plot(curves.mean(axis=0), linewidth=2.2, label=name, **look)
        one.set_title(f"{grid.panels} {panel}", loc="left", fontsize=11)
        one.set_xlabel("iteration")
        one.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes[0].set_ylabel("reward (thin: one seed)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside right center", frameon=False, title=grid.lines
    )
    figure.savefig(path, facecolor="white")


def plot_last(grid: Grid, reward: Curves, path: pathlib.Path) -> None:
    """Draws the last iteration's differences to the baseline with their intervals."""
    names = [n for n in grid.axes[grid.lines] if n != grid.baseline]
    figure, axes = canvas(len(reward), 1.2 + 0.4 * len(names))
    for one, (panel, lines) in zip(axes, reward.items()):
        for place, name in enumerate(names):
            gap = differences(lines.get(name, {}), lines.get(grid.baseline, {}))
            if not gap:
                continue
            mean, low, high = interval(gap)
            colour = style(list(grid.axes[grid.lines]).index(name))["color"]
            if math.isfinite(low):
                one.plot([low, high], [place, place], color=colour, linewidth=2)
            one.plot(gap, [place] * len(gap), "|", color=colour, markersize=9)
            one.plot([mean], [place], "o", color=colour, markersize=6)
        one.axvline(0, color="#444444", linewidth=0.9)
        one.set_title(f"{grid.panels} {panel}", loc="left", fontsize=11)
        one.set_xlabel(f"last reward minus {grid.baseline}'s (ticks: seeds)")
        one.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    figure.savefig(path, facecolor="white")
