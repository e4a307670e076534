"""Small plots as SVG for a page. Text stays text, in the page's font.

They are drawn in the light colours of style.css; its rules for PALETTE exchange them
for the page's, light or dark.
"""

import contextlib
import io
import itertools
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
)

from tpmm_jax.log.progress import clock_text

# Of series, in the light; a page in the dark has others.
COLOURS = (
    "#0072b2", "#d55e00", "#008a64", "#b0518a", "#3d99cf", "#b57f00", "#4a4f57",
    "#6d5bd0",
)  # fmt: skip
SERIES = len(COLOURS)
# Of the legend's strokes too: distinguishable without colour.
DASHES = ("", "6 3", "2 2.5", "9 3 2 3", "4 2", "1 2", "8 2 2 2 2 2", "12 3")
_MARKERS = "os^Dv<>P"
_WIDTH, _HEIGHT = 360.0, 220.0  # CSS pixels: about a phone's column
_FONT = 11.5
# Ticks are these times a power of ten apart.
_STEPS = [1, 2, 5, 10]
_FEW = 15  # points of a curve that get an error bar each; more get a band
# Variable of style.css -> the colour to draw in: its light value.
_INK, _MUTED, _GRID = "#1d2126", "#646c76", "#e4e6e9"
PALETTE = {f"s{index}": colour for index, colour in enumerate(COLOURS)}
PALETTE |= {"ink": _INK, "muted": _MUTED, "grid": _GRID}
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    # Equal ids mean equal parts, so that the plots of a page may share them.
    "svg.hashsalt": "tpmm_jax",
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # labels are the user's
    "font.size": _FONT,
    "axes.unicode_minus": True,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
}


@dataclass(frozen=True)
class Curve:
    """Points of one series; nan leaves a point or an interval out.

    Attributes:
      label: in the legend.
      x, y: the points.
      low, high: interval of y; empty if there is none.
      left, right: interval of x; empty if there is none.
      names: written at the points of a frontier.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    left: Sequence[float] = ()
    right: Sequence[float] = ()
    names: Sequence[float] = ()


def theta(k: int) -> str:
    """Returns theta_k in letters, such as θ₁₂."""
    return "θ" + str(k).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def by_iteration(
    curves: Sequence[Curve],
    *,
    share: bool = False,
    percent: bool = False,
    log: bool = False,
    zero: bool = False,
    xlabel: str = "iteration",
) -> Markup:
    """Draws curves over iterations, with their intervals.

    Args:
      share: y is a share; a dashed line marks the half.
      percent: y is a share.
      log: a logarithmic y axis, if the curves need more than a decade of it.
      zero: a dashed line marks 0.
    """
    with plot() as (figure, axes):
        draw_curves(axes, curves)
        axes.set_xlabel(xlabel)
        if zero:
            axes.axhline(0.0, **guide())
        if share:
            axes.axhline(0.5, **guide())
        if share or percent:
            # Where a curve lies at 100 %, the axis goes on above it.
            axes.yaxis.set_major_formatter(
                FuncFormatter(lambda y, _: f"{y:.0%}" if -1e-9 < y < 1 + 1e-9 else "")
            )
        axes.margins(y=0.08)
        if log and _decades(curves) > 1:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if log:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        return finished(figure)


def draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draws curves over iterations, with their intervals."""
    few = max(len(curve.x) for curve in curves) <= _FEW
    for index, curve in enumerate(curves):
        # Apart by a little, so that intervals at one iteration do not hide.
        spread = 0.09 if few else 0.0
        shift = (index - (len(curves) - 1) / 2) * min(spread, 0.4 / len(curves))
        draw_curve(axes, curve, index, shift, bars=few)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("iteration")


def _decades(curves: Sequence[Curve]) -> float:
    above = [y for curve in curves for y in curve.y if y > 0]
    return math.log10(max(above) / min(above)) if above else 0.0


def draw_curve(
    axes: Axes, curve: Curve, index: int, shift: float = 0.0, *, bars: bool = False
) -> None:
    """Draws one curve with its interval, as bars at its points or as a band."""
    x, colour = np.asarray(curve.x) + shift, _colour(index)
    if len(curve.low):
        if bars:
            axes.vlines(x, curve.low, curve.high, color=colour, linewidth=1.3)
        else:
            axes.fill_between(
                x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0
            )
    axes.plot(x, curve.y, **style(index), markersize=4.5 if bars else 0)


def frontier(curves: Sequence[Curve]) -> Markup:
    """Draws reward against KL, the points numbered by iteration."""
    with plot() as (figure, axes):
        for index, curve in enumerate(curves):
            axes.plot(curve.x, curve.y, **style(index), markersize=4.5)
            bars: dict[str, Any] = {"color": _colour(index), "alpha": 0.45}
            if len(curve.low):
                axes.vlines(curve.x, curve.low, curve.high, **bars)
            if len(curve.left):
                axes.hlines(curve.y, curve.left, curve.right, **bars)
            every = max(1, math.ceil(len(curve.x) / 12))
            points = zip(curve.x, curve.y, curve.names)
            for number, (x, y, name) in enumerate(points):
                last = number == len(curve.x) - 1
                known = math.isfinite(x) and math.isfinite(y)
                if known and (number % every == 0 or last):
                    axes.annotate(
                        f"{name:g}", (x, y), (5, 4), textcoords="offset points",
                        gid="halo",
                    )  # fmt: skip
        axes.set_xlabel("KL to θ₀, nats per response")
        axes.set_ylabel("reward")
        return finished(figure)


def by_step(
    rows: Sequence[tuple[int, float]],
    *,
    percent: bool = False,
    xlabel: str = "optimizer step, all iterations",
) -> tuple[Markup, int]:
    """Draws a training metric over the steps of all iterations.

    Args:
      rows: (iteration, value) of every step, in order; nan leaves a step out.

    Returns:
      The plot, and how many steps each point is the mean of.
    """
    size = max(1, math.ceil(len(rows) / 500))
    with plot() as (figure, axes):
        starts, at = [], 0
        for index, (_, group) in enumerate(
            itertools.groupby(rows, key=lambda row: row[0])
        ):
            values = np.array([value for _, value in group])
            starts.append(at)
            ends = np.arange(size, len(values) + size, size)
            parts = [values[end - size : end] for end in ends]
            means = [part[np.isfinite(part)] for part in parts]
            means = [part.mean() if len(part) else math.nan for part in means]
            middles = at + np.minimum(ends, len(values)) - (size + 1) / 2
            axes.plot(
                middles, means, color=_colour(0), linewidth=1.2,
                marker="o" if len(means) == 1 else "", markersize=3,
                alpha=1 if index % 2 == 0 else 0.75,
            )  # fmt: skip
            at += len(values)
        for start in starts[1:]:
            axes.axvline(start - 0.5, color=_MUTED, linewidth=0.8, dashes=(2, 3))
        if percent:
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=_STEPS))
        axes.set_xlabel(xlabel)
        return finished(figure), size


def heat(
    weights: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    full: float = 1.0,
    xlabel: str = "weight of checkpoint",
) -> Markup:
    """Draws weights [rows, columns]; nan is an empty cell, a negative one vermilion.

    Args:
      full: the weight from which on a cell has its full colour.
    """
    height = max(_HEIGHT, 15.0 * len(rows) + 50)
    with plot(height) as (figure, axes):
        few = len(columns) <= 12
        for at, weight in np.ndenumerate(weights):
            if not math.isfinite(weight):
                continue
            row, column = at
            # Not opaque, so that ink stays readable on it.
            shade = min(1.0, abs(weight) / full) * 0.6
            axes.add_patch(
                Rectangle(
                    (column - 0.48, row - 0.46), 0.96, 0.92, linewidth=0,
                    facecolor=_colour(0 if weight >= 0 else 1), alpha=shade,
                )
            )  # fmt: skip
            if few:
                text = f"{weight:.2f}".replace("0.", ".", 1)
                axes.text(
                    column, row, text, ha="center", va="center_baseline", size=_FONT - 1
                )
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(*_thinned(columns, 14))
        axes.set_yticks(*_thinned(rows, 40))
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(xlabel)
        return finished(figure)


def histogram(values: Mapping[str, np.ndarray], *, xlabel: str) -> Markup:
    """Draws distributions over common bins, with a line at 0."""
    together = np.concatenate(list(values.values()))
    together = together[np.isfinite(together)]
    with plot() as (figure, axes):
        count = int(np.clip(math.sqrt(max(len(together), 1)) * 1.5, 8, 40))
        edges = np.histogram_bin_edges(together, count)
        for index, found in enumerate(values.values()):
            heights, _ = np.histogram(found, edges)
            axes.stairs(heights, edges, fill=True, color=_colour(index), alpha=0.2)
            line = {k: v for k, v in style(index).items() if k != "marker"}
            axes.stairs(heights, edges, **line)
        axes.axvline(0, color=_MUTED, linewidth=1, dashes=(4, 3))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.set_xlabel(xlabel)
        axes.set_ylabel("pairs")
        return finished(figure)


def stacked(rows: Sequence[str], parts: Mapping[str, np.ndarray]) -> Markup:
    """Draws one bar per row, made of parts in seconds."""
    height = max(_HEIGHT, 14.0 * len(rows) + 50)
    with plot(height) as (figure, axes):
        left = np.zeros(len(rows))
        for index, seconds in enumerate(parts.values()):
            axes.barh(
                range(len(rows)), seconds, left=left, height=0.7, linewidth=0,
                color=_colour(index), alpha=0.8,
            )  # fmt: skip
            left = left + seconds
        axes.set_yticks(*_thinned(rows, 40))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x", color=_GRID, linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: clock_text(x)))
        axes.set_ylabel("iteration")
        return finished(figure)


def _thinned(names: Sequence[str], most: int) -> tuple[list[int], list[str]]:
    places = list(range(0, len(names), max(1, math.ceil(len(names) / most))))
    return places, [printable(names[place]) for place in places]


def style(index: int) -> dict[str, Any]:
    """Returns how the line of a series is drawn."""
    dash = DASHES[(index + index // SERIES) % SERIES]
    numbers = tuple(float(n) / 1.8 for n in dash.split())
    return {
        "color": _colour(index),
        "linewidth": 1.8,
        "linestyle": (0, numbers) if numbers else "-",
        "marker": _MARKERS[index % SERIES],
    }


def guide() -> dict[str, Any]:
    """Returns how a line to compare with is drawn."""
    return {"color": _MUTED, "linewidth": 1, "dashes": (4, 3), "zorder": 1}


def _colour(index: int) -> str:
    return COLOURS[index % SERIES]


def printable(text: str) -> str:
    """Returns text on one line that no control or direction mark can disturb."""
    return "".join("�" if unicodedata.category(c)[0] == "C" else c for c in text)


@contextlib.contextmanager
def plot(
    height: float = _HEIGHT, width: float = _WIDTH
) -> Iterator[tuple[Figure, Axes]]:
    """Gives an empty plot of so many pixels; draw and save it inside."""
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        figure.set_layout_engine("constrained", w_pad=3 / 72, h_pad=3 / 72)
        axes = figure.add_subplot()
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_MUTED)
        axes.tick_params(length=0, pad=4)
        axes.tick_params(axis="x", length=3, color=_MUTED)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=_STEPS))
        yield figure, axes


def finished(figure: Figure) -> Markup:
    """Returns the SVG as an element of a page."""
    buffer = io.StringIO()
    unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Laid out here, savefig need not draw the plot once more to have it laid out.
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine(None)
    figure.savefig(buffer, format="svg", transparent=True, metadata=unsaid)
    # Without the prolog and the size in points: the page sets the size.
    content = buffer.getvalue().partition("<svg")[2].partition(">")[2]
    width, height = figure.get_size_inches() * figure.dpi
    return Markup(f'<svg viewBox="0 0 {width:g} {height:g}">{content.rstrip()}')
