"""The table of a reward model's measures."""

from collections.abc import Mapping
from typing import Any

from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.routers import describe_routers
from tpmm_jax.log.table import draw_table, needed_width

NONE = "–"
# What is given up, one after another, until the table fits.
_GIVEN_UP = ("longer wins", "length r", "ECE", "loss", "choice", "pairs")
_CAPTION = (
    "accuracy: chance 50 %, a tie counts half; intervals over prompts\n"
    "length r: rank correlation of reward and length; longer wins: what choosing\n"
    "the longer answer would score"
)


def show_rewards(
    console: RunConsole, summary: Mapping[str, Any], routers: Mapping[str, Any]
) -> None:
    """Prints a row per test set, what was kept, and what routed experts do.

    Args:
      summary: as summary.json holds it.
      routers: router.json; {} of a dense model.
    """
    sets = summary["sets"]
    console.note("")
    cells = columns(sets)
    for title in _GIVEN_UP:
        if needed_width(cells.items()) > console.width:
            cells.pop(title, None)
    console.show(draw_table(cells.items(), left=("set",), caption=_CAPTION))
    console.note("")
    scale = summary["temperature"]
    known = f"temperature {scale:.3g}" if scale is not None else ""
    text = known or "no temperature calibrates it"
    console.note(
        f"best after step {summary['step']} of {summary['steps']} "
        f"(reward@{summary['kept']}); {text}"
    )
    if routers:
        console.note(f"routed experts: {describe_routers(routers)}")


def columns(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns the table's columns by title; those without any number are left out."""
    sets = {name: sets[name] for name in sorted(sets, key=lambda n: n != "heldout")}
    found = {
        "set": ["held-out" if name == "heldout" else name for name in sets],
        "pairs": [f"{row['pairs']:,}" for row in sets.values()],
        "accuracy (95 %)": [share(row, "accuracy") for row in sets.values()],
        "loss": [f"{row['loss']:.3f}" for row in sets.values()],
        "ECE": [f"{row['ece']:.3f}" for row in sets.values()],
        "choice": [_choices(row) for row in sets.values()],
        "length r": [_signed(row.get("length/spearman")) for row in sets.values()],
        "longer wins": [f"{row['length/longer_wins']:.0%}" for row in sets.values()],
    }
    return {t: cells for t, cells in found.items() if {*cells} - {NONE}}


def share(row: Mapping[str, Any], name: str) -> str:
    """Such as "71 % [66, 76]"."""
    low, high = 100 * row[f"{name}/low"], 100 * row[f"{name}/high"]
    return f"{100 * row[name]:.0f} % [{low:.0f}, {high:.0f}]"


def _choices(row: Mapping[str, Any]) -> str:
    names = [n for n in row if n.startswith("best_of_") and "/" not in n]
    return f"{share(row, names[0])} of {names[0][8:]}" if names else NONE


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+.2f}"


def failure(summary: Mapping[str, Any]) -> str:
    """Returns why a model is no result, "" if it is one."""
    if summary["beats_chance"]:
        return ""
    held = summary["sets"]["heldout"]
    low, high = held["accuracy/low"], held["accuracy/high"]
    return (
        f"this reward model does not beat chance: {held['accuracy']:.0%} of "
        f"{held['pairs']:,} held-out pairs, and the 95 % interval [{low:.0%}, "
        f"{high:.0%}] holds 50 %. It is a failed run, not a result: label nothing with "
        "it. More pairs, more epochs or another train.learning_rate may help"
    )
