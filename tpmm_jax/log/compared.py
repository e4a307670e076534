"""The table of a mixture beside its start and the dense models it is merged into."""

from collections.abc import Mapping
from typing import Any

from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.table import draw_table, needed_width
from tpmm_jax.merging import EXPERT_RULES

NONE = "–"
# What is given up, one after another, until the table fits.
_GIVEN_UP = ("ECE", "loss")
# The models that no rule made.
_TRAINED = ("start", "mixture")
# Rules whose weights come from held-out pairs.
_FROM_PAIRS = ("gating", "learned")


def show_compared(console: RunConsole, summary: Mapping[str, Any]) -> None:
    """Prints a row per test set and model; nothing of a dense run.

    Args:
      summary: as summary.json holds it.
    """
    compared = summary.get("compared")
    if not compared:
        return
    cells = compared_columns(compared)
    for title in _GIVEN_UP:
        if needed_width(cells.items()) > console.width:
            cells.pop(title, None)
    console.note("")
    left = ("set", "model")
    console.show(draw_table(cells.items(), left=left, caption=caption(compared)))


def compared_columns(
    compared: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, list[str]]:
    """Returns the table's columns by title.

    Args:
      compared: model -> set -> measures, as summary.json holds them.
    """
    models = [name for name in (*_TRAINED, *EXPERT_RULES) if name in compared]
    sets = sorted(compared[models[0]], key=lambda name: name != "heldout")
    rows = [(of_set, model) for of_set in sets for model in models]
    cells = [compared[model][of_set] for of_set, model in rows]
    titles = {"heldout": "held-out"}
    return {
        "set": [titles.get(s, s) if m == models[0] else "" for s, m in rows],
        "model": [model_title(model) for _, model in rows],
        "accuracy (95 %)": [_percent(row, "accuracy", "{:.1f}") for row in cells],
        "over the start (95 %)": [
            _percent(row, "gain", "{:+.1f}") if "gain" in row else NONE for row in cells
        ],
        "loss": [f"{row['loss']:.3f}" for row in cells],
        "ECE": [f"{row['ece']:.3f}" for row in cells],
    }


def model_title(name: str) -> str:
    """Returns what a model of summary.json is called in a table."""
    return name if name in _TRAINED else f"merged, {name}"


def _percent(row: Mapping[str, Any], name: str, form: str) -> str:
    """Such as "63.9 [62.1, 65.6]", percent; without an interval that bounds nothing."""
    known = [n for n in (name, f"{name}/low", f"{name}/high") if n in row]
    mean, *bounds = (form.format(100 * row[n]) for n in known)
    return f"{mean} [{', '.join(bounds)}]" if bounds else mean


def caption(compared: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns what has to be known of the table."""
    lines = [
        "start: what training began with; dense, if it was upcycled in the run.",
        "Gains over it are in points, paired by pair.",
    ]
    rules = " and ".join(rule for rule in _FROM_PAIRS if rule in compared)
    if rules:
        lines += [
            f"The weights of {rules} come from the held-out pairs, whose",
            "figures flatter these models: the further sets are the comparison.",
        ]
        if len(next(iter(compared.values()))) == 1:
            lines.append("There is none: name one in evaluation.sets.")
    return "\n".join(lines)
