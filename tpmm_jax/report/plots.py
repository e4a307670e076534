"""Plots of a run, drawn without a display."""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tpmm_jax.errors import BadInput
from tpmm_jax.store.files import write_file

# Okabe and Ito, "Color universal design" (2008), for colour-blind readers too.
# Their yellow is left out, too pale for a line on white.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
)
_DASHES = ("-", "--", ":", "-.")
_PIXELS = (900, 560)
_DPI = 100
_FORMATS = (".png", ".svg", ".pdf")
_INK, _FAINT = "#222222", "#dddddd"

Row = Mapping[str, Any]


def plot_reward(
    runs: Mapping[str, Sequence[Row]], path: str | os.PathLike[str]
) -> pathlib.Path:
    """Plot mean reward by iteration with its interval, one line per run; atomic write.

    Args:
        runs: label, such as the merge rule, -> rows as read_metrics gives them. Rows of
            kind "iteration" with reward/mean count; iteration 0 is theta_0. The band
            is reward/low to reward/high, where a row has them.
        path: ends in .png (900 x 560), .svg or .pdf; its folder is made.

    Returns:
        The path.

    Raises:
        BadInput: another file type, or no run has a reward to draw.
        StorageError: the disk refuses.
    """
    path = pathlib.Path(path)
    if path.suffix not in _FORMATS:
        raise BadInput(
            f"cannot draw {path}: the name ends in {path.suffix!r}; wanted one of "
            f"{', '.join(_FORMATS)}. Rename the plot"
        )
    curves = {label: _curve(rows) for label, rows in runs.items()}
    curves = {label: curve for label, curve in curves.items() if curve}
    if not curves:
        raise BadInput(
            f"nothing to draw in {path}: none of the runs {list(runs)} has a row of "
            "kind 'iteration' with a finite reward/mean. Let an iteration finish first"
        )
    figure = Figure(figsize=(_PIXELS[0] / _DPI, _PIXELS[1] / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.115, 0.735, 0.775))
    for index, (label, curve) in enumerate(curves.items()):
        _draw(axes, label, curve, index, shade=min(0.14, 0.5 / len(curves)))
    _dress(axes)
    _label_ends(figure, axes, curves)
    kind = path.suffix[1:]
    write_file(path, lambda file: figure.savefig(file, format=kind, facecolor="white"))
    return path


def _curve(rows: Sequence[Row]) -> list[tuple[int, float, float, float]]:
    """(iteration, mean, low, high) by iteration; nan where there is no interval."""
    points = {}
    for row in rows:
        if row["kind"] != "iteration" or "reward/mean" not in row:
            continue
        mean = float(row["reward/mean"])
        if math.isfinite(mean):
            low, high = (float(row.get(f"reward/{n}", "nan")) for n in ("low", "high"))
            points[row["iteration"]] = (row["iteration"], mean, low, high)
    return [points[iteration] for iteration in sorted(points)]


def _draw(
    axes: Axes, label: str, curve: Sequence[tuple], index: int, *, shade: float
) -> None:
    iterations, means, lows, highs = zip(*curve)
    colour = COLOURS[index % len(COLOURS)]
    axes.fill_between(iterations, lows, highs, color=colour, alpha=shade, linewidth=0)
    axes.plot(
        iterations,
        means,
        _DASHES[index // len(COLOURS) % len(_DASHES)],
        color=colour,
        linewidth=2,
        marker="o",
        markersize=5,
        label=label,
    )
    if len(curve) == 1:  # a band needs two points; one point gets a bar
        axes.vlines(iterations, lows, highs, color=colour, alpha=0.5, linewidth=2)


def _dress(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(
        lambda x, _: r"0 ($\theta_0$)" if x == 0 else f"{x:.0f}"
    )
    axes.set_xlabel("iteration", color=_INK, fontsize=11)
    axes.set_title(
        "mean reward, band: 95 % interval", loc="left", fontsize=12, color=_INK, pad=12
    )
    axes.grid(axis="y", color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#888888")
    axes.tick_params(colors=_INK, labelsize=10, length=0, pad=6)
    axes.tick_params(axis="x", length=4, color="#888888")


def _label_ends(
    figure: Figure, axes: Axes, curves: Mapping[str, Sequence[tuple]]
) -> None:
    """Name each line at its end, moving names apart where they would meet."""
    figure.canvas.draw()  # the limits are settled by drawing
    bottom, top = axes.get_ylim()
    right = max(curve[-1][0] for curve in curves.values())
    height = (top - bottom) * 0.042
    ends = sorted((curve[-1][1], label) for label, curve in curves.items())
    places = _apart([end for end, _ in ends], height, bottom, top)
    colours = {line.get_label(): line.get_color() for line in axes.get_lines()}
    for (_, label), place in zip(ends, places):
        axes.annotate(
            label if len(label) <= 20 else f"{label[:19]}…",
            (right, place),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            color=colours[label],
            annotation_clip=False,
        )


def _apart(
    wanted: Sequence[float], gap: float, bottom: float, top: float
) -> list[float]:
    """Least-squares places for ascending wanted ones, at least a gap apart, inside."""
    # Less the gaps, the places need only ascend: pool neighbours that do not.
    pools: list[tuple[float, int]] = []
    for index, place in enumerate(wanted):
        mean, count = place - index * gap, 1
        while pools and pools[-1][0] > mean:
            before, n = pools.pop()
            mean, count = (before * n + mean * count) / (n + count), n + count
        pools.append((mean, count))
    level = [mean for mean, count in pools for _ in range(count)]
    highest = top - (len(level) - 1) * gap
    return [
        max(bottom, min(mean, highest)) + index * gap
        for index, mean in enumerate(level)
    ]
