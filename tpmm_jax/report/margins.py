"""Plots of the rewards' margins: how pairs are weighed by them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from tpmm_jax.config import flatten
from tpmm_jax.losses.madpo import coefficient, weight
from tpmm_jax.report import figures
from tpmm_jax.report.gather import RunData
from tpmm_jax.report.panels import Panel, Section, family

# Points of a drawn curve, and marks on it.
_POINTS, _MARKS = 200, 400


def margin_sections(runs: Sequence[RunData]) -> list[Section]:
    """Returns the section of margins, where a run has them."""
    panels = [*(distributions(runs[0]) if len(runs) == 1 else []), *by_iteration(runs)]
    return [Section("Margins of the rewards", panels)] if panels else []


def by_iteration(runs: Sequence[RunData]) -> list[Panel]:
    """Weights, effective pairs and margins by iteration."""
    note = "It is (Σw)²/Σw² of the training pairs, beside their number."
    names = {"madpo/effective_pairs": "effective", "pairs": "training pairs"}
    weighed = [run for run in runs if "madpo/effective_pairs" in run.names()]
    found = []
    if weighed:
        found += family(weighed, "Effective number of pairs", names, note)
        title, note = "Pairs with |h| above τ", "Their margins are shrunk."
        found += family(weighed, title, {"madpo/above_tau": ""}, note, percent=True)
        note = "Weights are not renormalised."
        found += family(weighed, "Mean weight", {"madpo/weight": ""}, note)
    note = "Rewards and labels disagree about these, before pairing.margins acts."
    title = "Training pairs with a negative margin"
    return found + family(runs, title, {"margins/negative": ""}, note, percent=True)


def distributions(run: RunData) -> list[Panel]:
    """Margins of the last iteration, their weights, and the curve c(|h|)."""
    t = run.last.get("iteration", 0)
    if "margins/size" not in run.last:
        return []
    margin_P = run.margins(t)
    if not len(margin_P):
        return []
    note = f"{len(margin_P):,} pairs trained iteration {t}; labels give the signs."
    svg = figures.histogram({"": margin_P}, xlabel="h, chosen minus rejected")
    found = [Panel("Margins h", note, [], svg)]
    if "madpo/weight" not in run.last:
        return found
    given = constants(run.config)
    weight_P = np.asarray(weight(margin_P.astype(np.float32), **given), np.float64)
    svg = figures.histogram({"": weight_P}, xlabel="w(h)")
    found.append(Panel("MADPO's weights", note, [], svg))
    note = f"Marks are |h| of the pairs; the dashed line is τ = {given['tau']:g}."
    svg = _coefficient_curve(np.abs(margin_P), given)
    return [*found, Panel("Coefficient c(|h|)", note, [], svg)]


def constants(config: Mapping[str, Any]) -> dict[str, float]:
    """Returns the constants of MADPO's weight that a run has."""
    flat = flatten(config)
    return {name: float(flat[f"loss.{name}"]) for name in ("c_max", "tau", "lam")}


def _coefficient_curve(size_P: np.ndarray, given: Mapping[str, float]) -> Markup:
    """Draws c over |h|, and where the pairs lie on it."""
    size = np.linspace(0, max(1.3 * given["tau"], size_P.max() * 1.05), _POINTS)
    marks = np.sort(size_P)
    marks = marks[np.linspace(0, len(marks) - 1, min(len(marks), _MARKS)).astype(int)]
    with figures.plot() as (figure, axes):
        colour = figures.COLOURS[0]
        axes.plot(size, coefficient(size.astype(np.float32), **given), color=colour)
        axes.plot(
            marks, coefficient(marks.astype(np.float32), **given), linestyle="",
            marker="o", markersize=5, color=figures.COLOURS[1], alpha=0.35,
            markeredgewidth=0,
        )  # fmt: skip
        axes.axvline(
            given["tau"], color=figures.PALETTE["muted"], linewidth=1, dashes=(4, 3)
        )
        axes.set_ylim(bottom=0)
        axes.set_xlabel("|h|")
        axes.set_ylabel("c(|h|)")
        return figures.finished(figure)
