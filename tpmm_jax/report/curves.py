"""The page and the picture of best of n: gold and proxy against the bound on the KL."""

import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tpmm_jax.log.curves import cells, sentence, shown
from tpmm_jax.report.figures import (
    Curve,
    draw_curve,
    finished,
    plot,
    printable,
)
from tpmm_jax.report.page import environment, write_html
from tpmm_jax.report.panels import Panel
from tpmm_jax.store.files import write_file

PAGE, PICTURE = "best_of_n.html", "best_of_n.png"
_HEIGHT, _WIDTH = 290.0, 400.0
_XLABEL = "KL of best of n, at most (nats per response)"

Row = Mapping[str, Any]


def write_curves(folder: pathlib.Path, summary: Row) -> list[pathlib.Path]:
    """Writes best_of_n.html and best_of_n.png; returns their paths.

    Args:
      summary: what best_of_n.json holds.
    """
    panels = curve_panels(summary["curves"])
    html = environment().get_template("curves.html.jinja").render(
        title="Best of n",
        summary=summary,
        panels=panels,
        tables=[_table(curve) for curve in summary["curves"]],
    )  # fmt: skip
    write_html(folder / PAGE, html)
    write_file(folder / PICTURE, lambda file: file.write(_picture(summary["curves"])))
    return [folder / PAGE, folder / PICTURE]


def curve_panels(curves: Sequence[Row]) -> list[Panel]:
    """Returns the plots of gold and of the proxies."""
    panels = []
    for name, title, note in _plots(curves):
        with plot(_HEIGHT, _WIDTH) as (figure, axes):
            _draw(axes, curves, name)
            keys = curve_names(curves) if len(curves) > 1 else []
            panels.append(Panel(title, note, keys, finished(figure)))
    return panels


def _plots(curves: Sequence[Row]) -> list[tuple[str, str, str]]:
    gold = "Gold score of the answer that the proxy picks"
    note = "The answer is picked by it."
    if len({curve["proxy"] for curve in curves}) > 1:
        note += (
            " Each proxy is drawn above its mean, in standard deviations of the "
            f"answers to a prompt, both of {curves[0]['policy']}: their units differ."
        )
    return [
        ("gold", gold, "The bands are 95 % intervals."),
        ("proxy", "Proxy of that answer", note),
    ]


def curve_names(curves: Sequence[Row]) -> list[str]:
    """Returns the shortest names that tell curves apart, in their order."""
    policies = {curve["policy"] for curve in curves}
    proxies = {curve["proxy"] for curve in curves}
    if len(proxies) == 1:
        return [str(curve["policy"]) for curve in curves]
    if len(policies) == 1:
        return [f"by {curve['proxy']}" for curve in curves]
    return [f"{curve['policy']} by {curve['proxy']}" for curve in curves]


def _draw(axes: Axes, curves: Sequence[Row], name: str) -> None:
    for index, (label, curve) in enumerate(zip(curve_names(curves), curves)):
        rows = curve["rows"]
        x = [row["kl_bound"] for row in rows]
        zero, unit = _scale(curves, curve) if name == "proxy" else (0.0, 1.0)
        y, low, high = (
            [(float(row[name + end]) - zero) / unit for row in rows]
            for end in ("", "/low", "/high")
        )
        known = all(map(math.isfinite, [*low, *high]))
        draw_curve(
            axes, Curve(label, x, y, low if known else (), high if known else ()), index
        )
        # Marks where the table has a row.
        kept = [i for i, row in enumerate(rows) if row in shown(rows)]
        axes.plot(
            [x[i] for i in kept], [y[i] for i in kept], linestyle="",
            marker=axes.lines[-1].get_marker(), markersize=4,
            color=axes.lines[-1].get_color(),
        )  # fmt: skip
    axes.set_xlabel(_XLABEL)
    axes.margins(x=0.03, y=0.08)
    _mark_sizes(axes, shown(curves[0]["rows"]))


def _mark_sizes(axes: Axes, rows: Sequence[Row]) -> None:
    """Writes n along the top."""
    top = axes.twiny()
    top.set_xlim(axes.get_xlim())
    # The first ones stand too close to each other for all of them to be named.
    kept = [row for row in rows if row["n"] != 2]
    names = [f"n = {row['n']}" if row["n"] == 1 else str(row["n"]) for row in kept]
    top.set_xticks([row["kl_bound"] for row in kept], names)
    top.tick_params(axis="x", length=0, pad=1)
    top.spines[:].set_visible(False)


def _scale(curves: Sequence[Row], curve: Row) -> tuple[float, float]:
    """Returns the zero and the unit in which a curve's proxy is drawn."""
    if len({one["proxy"] for one in curves}) == 1:
        return 0.0, 1.0
    first = next(one for one in curves if one["proxy"] == curve["proxy"])
    return float(first["rows"][0]["proxy"]), float(first["proxy_spread"]) or 1.0


def _picture(curves: Sequence[Row]) -> bytes:
    buffer = io.BytesIO()
    with plot(_HEIGHT, 2 * _WIDTH) as (figure, axes):
        axes.remove()
        sides = figure.subplots(1, 2)
        for side, (name, title, _) in zip(sides, _plots(curves)):
            side.grid(axis="y", alpha=0.3, linewidth=0.8)
            side.spines[["top", "right", "left"]].set_visible(False)
            side.tick_params(length=0)
            _draw(side, curves, name)
            side.set_title(title, fontsize="medium", loc="left")
        if len(curves) > 1:
            # Of each curve the line, not the marks that follow it.
            names = [printable(text) for text in curve_names(curves)]
            figure.legend(
                sides[0].lines[::2], names, loc="outside lower center",
                ncols=min(3, len(names)), frameon=False,
            )  # fmt: skip
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=144, facecolor="white")
    return buffer.getvalue()


def _table(curve: Row) -> dict[str, Any]:
    """Returns a curve's table for the page."""
    rows = [
        {k: v if k == "n" else float(v) for k, v in row.items()}
        for row in shown(curve["rows"])
    ]
    titles = {"proxy": "proxy", "gold": "gold", "gain": "gold over n = 1"}
    if any("lead" in row for row in rows):
        titles["lead"] = "gold over the first curve"
    columns = [cells(rows, name) for name in titles]
    sizes = [(str(row["n"]), f"{row['kl_bound']:.2f}") for row in rows]
    return {
        "head": f"{curve['policy']}, best of n by {curve['proxy']}",
        "words": sentence(curve),
        "titles": ["n", "KL, at most", *titles.values()],
        "rows": [[*size, *row] for size, row in zip(sizes, zip(*columns))],
    }
