"""Plots of a mixture: shares of its experts, entropy, distances."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tpmm_jax.log.metrics import HELD_OUT_KIND
from tpmm_jax.report import figures
from tpmm_jax.report.figures import Curve
from tpmm_jax.report.gather import RunData
from tpmm_jax.report.panels import Panel


def router_panels(run: RunData, found: Mapping[str, Any]) -> list[Panel]:
    """Returns the plots of a mixture; none of a dense model.

    Args:
      found: router.json; {} where there is none (yet).
    """
    best = [_shares(found), _distances(found)] if found else []
    return best + _history(run)


def _shares(found: Mapping[str, Any]) -> Panel:
    share_LX = np.asarray(found["share"], float)
    svg = figures.heat(
        share_LX,
        [f"layer {layer}" for layer in found["layers"]],
        [str(expert) for expert in range(share_LX.shape[1])],
        full=max(2 / share_LX.shape[1], float(share_LX.max())),
        xlabel="expert",
    )
    note = (
        f"The best model assigned {found['tokens']:,} tokens of held-out pairs so; an "
        f"even share is {1 / share_LX.shape[1]:.3g}, and an expert below "
        f"{found['dead_below']:.3g} is dead."
    )
    return Panel("Share of each expert", note, [], svg)


def weight_panels(
    found: Mapping[str, Any], merges: Mapping[str, Mapping[str, Any]]
) -> list[Panel]:
    """Returns the merge weights of every rule whose weights say something."""
    made = []
    for rule, record in merges.items():
        if rule == "uniform":
            continue
        weight_LX = np.asarray(record["weights"], float)
        svg = figures.heat(
            weight_LX,
            [f"layer {layer}" for layer in found["layers"]],
            [str(expert) for expert in range(weight_LX.shape[1])],
            full=max(2 / weight_LX.shape[1], float(weight_LX.max())),
            xlabel="expert",
        )
        note = f"They come from {record['pairs']:,} held-out pairs."
        if record.get("kept") == "start":
            note += " What was learned was no better than gating, which was kept."
        made.append(Panel(f"Merge weights, {rule}", note, [], svg))
    return made


def _distances(found: Mapping[str, Any]) -> Panel:
    """Distances of experts from their start and from each other, by layer."""
    start = "the dense start" if found["start"] == "dense" else "their start"
    named = {
        f"routed experts from {start}": np.mean(found["from_start"], axis=1).tolist(),
        f"shared expert from {start}": found.get("shared_from_start", []),
        "two routed experts": found["apart"],
    }
    curves = [
        Curve(label, list(found["layers"]) if values else [], values)
        for label, values in named.items()
    ]
    note = "It is the norm of the difference over that of the start, a mean by layer."
    svg = figures.by_iteration(curves, xlabel="layer")
    keys = [curve.label if curve.x else "" for curve in curves]
    return Panel("Distances of experts", note, keys, svg)


def _history(run: RunData) -> list[Panel]:
    """Entropy, shares and distances at each evaluation."""
    rows = [
        row
        for row in run.metrics
        if row["kind"] == HELD_OUT_KIND and "router/entropy" in row
    ]
    if not rows:
        return []
    kinds: Sequence[tuple[str, dict[str, str], str, bool]] = (
        ("Entropy of the routers", {"router/entropy": ""}, "It is that of a token's "
         "router in nats, a mean over layers; even is the logarithm of the number of "
         "experts.", False),
        ("Busiest and idlest expert",
         {"router/busiest": "busiest", "router/idlest": "idlest"},
         "These are the largest and smallest share of any expert of any layer.", True),
    )  # fmt: skip
    made = []
    for title, names, note, percent in kinds:
        curves = [
            Curve(
                label,
                [row["step"] for row in rows],
                [run.number(row, name) for row in rows],
            )
            for name, label in names.items()
        ]
        svg = figures.by_iteration(curves, percent=percent, xlabel="optimizer step")
        keys = list(names.values()) if len(names) > 1 else []
        made.append(Panel(title, note, keys, svg))
    return made
