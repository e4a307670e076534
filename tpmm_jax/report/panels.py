"""Which plots a page shows, of one run or of several in comparison.

With one run, a plot's curves are what belongs together; with several, there is a plot
for each of these and a curve for each run.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from tpmm_jax.axes import CHOSEN, REJECTED
from tpmm_jax.log.metrics import KINDS, find_labels
from tpmm_jax.merging import FAINT, policy_is_reference
from tpmm_jax.report import figures
from tpmm_jax.report.figures import Curve, theta
from tpmm_jax.report.gather import Row, RunData

PREVIOUS = "θₜ₋₁"
_CUT = "max_new_tokens ended this share of the answers."


_LAYERS = "Each row is a layer, or a parameter outside the layers."


@dataclass(frozen=True)
class Panel:
    """One plot of a page.

    Attributes:
      title, note: above and below it.
      keys: labels of its series, in order; empty where there is one.
      svg: the plot.
      filled: whether the series are areas, not lines.
    """

    title: str
    note: str
    keys: Sequence[str]
    svg: Markup
    filled: bool = False


@dataclass(frozen=True)
class Section:
    """Plots under one heading."""

    title: str
    panels: Sequence[Panel]


def sections(runs: Sequence[RunData]) -> list[Section]:
    """Returns every section of the page that has a plot."""
    found = [
        Section("Reward", [*reward(runs), *win_rates(runs)]),
        Section("Distance from θ₀", distance(runs)),
        Section("Merged reference", merging(runs)),
        Section("Held-out pairs", held_out(runs)),
        Section("Length and variety of the samples", variety(runs)),
    ]
    if len(runs) == 1:
        found.append(Section("Training", training(runs[0])))
        found.append(Section("Time", time(runs[0])))
    return [section for section in found if section.panels]


def prefixes(runs: Sequence[RunData]) -> list[tuple[str, str]]:
    """Returns (what names start with, what to call it) of every prompt set."""
    sets = dict.fromkeys(name for run in runs for name in run.sets())
    called = {"": "", **{name: f", {name}" for name in sets if name}}
    # The answers of the mean, not those of theta_t to other prompts.
    called |= {"ship": f", the mean of {theta(0)} to θₜ"} if "ship" in sets else {}
    return [(f"{name}/".lstrip("/"), called[name]) for name in sets]


def curve(run: RunData, name: str, label: str) -> Curve:
    """Returns a metric by iteration, with its interval where the rows have one."""
    rows = [row for row in run.iterations if math.isfinite(run.number(row, name))]
    low, high = zip(*(run.interval(row, name) for row in rows)) if rows else ((), ())
    known = any(map(math.isfinite, low))
    return Curve(
        label,
        [row["iteration"] for row in rows],
        [run.number(row, name) for row in rows],
        low if known else (),
        high if known else (),
    )


def family(
    runs: Sequence[RunData],
    title: str,
    names: Mapping[str, str],
    note: str = "",
    **style: Any,
) -> list[Panel]:
    """Returns the plot of metrics that share an axis, or one of each for several runs.

    Args:
      names: metric -> its label in the legend.
      style: of figures.by_iteration.
    """
    draw = functools.partial(figures.by_iteration, **style)
    if len(runs) == 1:
        curves = [curve(runs[0], name, label) for name, label in names.items()]
        return _panel(title, curves, note, draw, named=len(names) > 1)
    found = []
    for name, label in names.items():
        curves = [curve(run, name, run.label) for run in runs]
        whole = f"{title}: {label}" if len(names) > 1 else title
        found += _panel(whole, curves, note, draw, named=True)
    return found


def _panel(
    title: str,
    curves: list[Curve],
    note: str,
    draw: Callable[[list[Curve]], Markup],
    *,
    named: bool,
) -> list[Panel]:
    # An absent curve keeps its colour: a run has the same one in every plot.
    if not any(curve.x for curve in curves):
        return []
    if any(curve.low for curve in curves):
        note = f"{note} The bars are 95\u00a0% intervals.".lstrip()
    keys = [curve.label if curve.x else "" for curve in curves] if named else []
    return [Panel(title, note, keys, draw(curves))]


def reward(runs: Sequence[RunData]) -> list[Panel]:
    """Reward by iteration: of the labelling scorer and the further ones, by set."""
    found, named = [], [run.names() for run in runs]
    for prefix, of in prefixes(runs):
        found += family(runs, f"Reward{of}", {f"{prefix}reward/mean": ""})
        for label in find_labels(named, f"{prefix}score/", "/mean"):
            name = f"{prefix}score/{label}/mean"
            note = "This further scorer labelled no pair."
            found += family(runs, f"Score of {label}{of}", {name: ""}, note)
        note = (
            "The labelling scorer's members are so far apart on an answer, on average."
        )
        name = f"{prefix}reward/spread"
        found += family(runs, f"Spread of the reward{of}", {name: ""}, note)
    return found


def win_rates(runs: Sequence[RunData]) -> list[Panel]:
    """Win rates against theta_0 and theta_{t-1}, by every judge there is."""
    found, note = [], "Ties count half; the dashed line is 50\u00a0%."
    named = [run.names() for run in runs]
    for prefix, of in prefixes(runs):
        judges = {prefix: "labelling scorer"}
        for kind in ("score", "judge"):
            labels = find_labels(named, f"{prefix}{kind}/", "/win/theta_0")
            judges |= {f"{prefix}{kind}/{label}/": label for label in labels}
        against = {"theta_0": theta(0), "previous": PREVIOUS}
        if prefix == "ship/":
            against = {"theta_0": theta(0), "policy": "θₜ"}
        if len(judges) == 1:
            names = {f"{prefix}win/{k}": f"against {v}" for k, v in against.items()}
            found += family(runs, f"Win rate{of}", names, note, share=True)
            continue
        for end, opponent in against.items():
            names = {f"{start}win/{end}": judge for start, judge in judges.items()}
            title = f"Win rate against {opponent}{of}"
            found += family(runs, title, names, note, share=True)
    return found


def distance(runs: Sequence[RunData]) -> list[Panel]:
    """Reward over KL, and KL by iteration."""
    found = []
    for prefix, of in prefixes(runs):
        kl, reward = f"{prefix}kl/theta_0", f"{prefix}reward/mean"
        curves = [
            _against(curve(run, kl, run.label), curve(run, reward, run.label))
            for run in runs
        ]
        if any(len(curve.x) > 1 for curve in curves):
            note = "Points are numbered by iteration; 0 is θ₀."
            title, named = f"Reward over KL{of}", len(runs) > 1
            found += _panel(title, curves, note, figures.frontier, named=named)
        names = {kl: f"to {theta(0)}", f"{prefix}kl/reference": "to the reference"}
        found += family(runs, f"KL{of}", names, "KL is in nats per response.")
    return found


def _against(x: Curve, y: Curve) -> Curve:
    """Returns y over x at the iterations that both have."""
    pairs = [(x.x.index(t), i) for i, t in enumerate(y.x) if t in x.x]

    def of(values: Sequence[float], which: int) -> list[float]:
        return [values[pair[which]] for pair in pairs] if len(values) else []

    return Curve(
        y.label, of(x.y, 0), of(y.y, 1), of(y.low, 1), of(y.high, 1),
        of(x.low, 0), of(x.high, 0), of(y.x, 1),
    )  # fmt: skip


def merging(runs: Sequence[RunData]) -> list[Panel]:
    """Merge weights by iteration and by layer; signal-to-rounding."""
    found = []
    for run in runs:
        of = f", {run.label}" if len(runs) > 1 else ""
        found += _weights(run, of) + _layer_weights(run, of) + _evidence(run, of)
        found += _shipped_weights(run, of)
    found += family(
        runs,
        "Signal-to-rounding of the merge",
        {"merge/signal_to_rounding": ""},
        f"It is |merged − θ₀| over the rounding error of computing with it; below "
        f"{FAINT:g} the reference hardly differs from θ₀.",
        log=True,
    )
    return found


def _weights(run: RunData, of: str) -> list[Panel]:
    note = "Each row is the reference that θₜ was trained against."
    return _heat(run, "merge/weight_", f"Merge weights{of}", note)


def _shipped_weights(run: RunData, of: str) -> list[Panel]:
    note = "Each row is the mean that is evaluated beside θₜ."
    return _heat(run, "ship/weight_", f"Weights of the shipped mean{of}", note)


def _heat(run: RunData, start: str, title: str, note: str) -> list[Panel]:
    rows = [row for row in run.iterations if f"{start}0" in row]
    count = sum(name.startswith(start) for name in run.names())
    if not rows:
        return []
    weights = np.array(
        [[run.number(row, f"{start}{k}") for k in range(count)] for row in rows]
    )
    svg = figures.heat(
        weights,
        [f"t = {row['iteration']}" for row in rows],
        [theta(k) for k in range(count)],
    )
    return [Panel(title, note, [], svg)]


def _layer_weights(run: RunData, of: str) -> list[Panel]:
    layered = {
        t: record
        for t, record in run.references.items()
        if len(record.get("groups", [])) > 1 and record.get("weights")
    }
    if not layered:
        return []
    last = max(layered)
    weights = np.array(layered[last]["weights"], float)
    names = [str(name) for name in layered[last]["groups"]]
    columns = [theta(k) for k in range(weights.shape[1])]
    title = f"Merge weights by layer, iteration {last}{of}"
    return [Panel(title, _LAYERS, [], figures.heat(weights, names, columns))]


def _evidence(run: RunData, of: str) -> list[Panel]:
    """What held-out pairs said of the weights, where they were fitted on margins."""
    fitted = {
        t: record
        for t, record in sorted(run.references.items())
        if len(record.get("accuracies", ())) > 1
    }
    if not fitted:
        return []
    gain, error = (
        [float(record[name]) for record in fitted.values()]
        for name in ("gain", "gain_error")
    )
    gains = Curve(
        "",
        list(fitted),
        gain,
        [g - e for g, e in zip(gain, error)],
        [g + e for g, e in zip(gain, error)],
    )
    equal = [str(t) for t, record in fitted.items() if not record["learned"]]
    note = (
        "The fitted weights save so much held-out loss over equal ones, in nats per "
        "pair, on prompts that they were not fitted on. The bars are one standard "
        "error. "
    )
    note += (
        f"Equal weights were used in iteration{'s' if len(equal) > 1 else ''} "
        f"{', '.join(equal)}: there the pairs did not tell the checkpoints apart."
        if equal
        else "The fitted weights were used in all of them."
    )
    title = f"Gain of the fitted weights{of}"
    found = [Panel(title, note, [], figures.by_iteration([gains], zero=True))]
    last, record = list(fitted.items())[-1]
    y, low, high = zip(*record["accuracies"])
    alone = Curve("", list(range(1, len(y) + 1)), y, low, high)
    note = (
        f"θₖ alone against {theta(0)} orders this share of the held-out pairs so far "
        "as they are labelled. The bars are 95\u00a0% intervals."
    )
    for k in record["left_out"]:
        note += f" {theta(int(k))} is left out of the reference."
    svg = figures.by_iteration([alone], share=True, xlabel="checkpoint")
    title = f"Held-out accuracy of each checkpoint, iteration {last}{of}"
    return [*found, Panel(title, note, [], svg)]


def held_out(runs: Sequence[RunData]) -> list[Panel]:
    """Accuracy and margin on held-out pairs; their distributions at the end."""
    note = (
        f"θₜ against {theta(0)} prefers the chosen answer in this share of the pairs."
    )
    found = family(
        runs, "Held-out accuracy", {"heldout/accuracy": ""}, note, share=True
    ) + family(
        runs, "Held-out margin", {"heldout/margin": ""}, "The margin is in nats."
    )
    if len(runs) > 1 or not runs[0].iterations:
        return found
    last = runs[0].last["iteration"]
    arrays = runs[0].held_out(last)
    if not {"policy_MN", "theta_0_MN"} <= arrays.keys() or not len(arrays["policy_MN"]):
        return found
    ratios = arrays["policy_MN"] - arrays["theta_0_MN"]
    margins = {f"against {theta(0)}": ratios[:, CHOSEN] - ratios[:, REJECTED]}
    if "reference_MN" in arrays:
        ours = arrays["policy_MN"] - arrays["reference_MN"]
        margins["against the reference"] = ours[:, CHOSEN] - ours[:, REJECTED]
    sides = {"chosen": ratios[:, CHOSEN], "rejected": ratios[:, REJECTED]}
    note = f"These are {len(ratios):,} held-out pairs under {theta(last)}."
    for title, values, xlabel in (
        ("Margins of held-out pairs", margins, "margin, nats"),
        ("Log-ratios of held-out responses", sides, f"log θₜ / {theta(0)}, nats"),
    ):
        svg = figures.histogram(values, xlabel=xlabel)
        found.append(Panel(title, note, list(values), svg))
    return found


def variety(runs: Sequence[RunData]) -> list[Panel]:
    """Length and distinct-n by iteration, by set."""
    found = []
    for prefix, of in prefixes(runs):
        names = {f"{prefix}length/mean": ""}
        found += family(runs, f"Length{of}", names, "Length is in tokens per response.")
        names = {f"{prefix}length/cut": ""}
        found += family(runs, f"Answers cut{of}", names, _CUT, percent=True)
        distinct = {f"{prefix}distinct/{n}": f"distinct-{n}" for n in (1, 2)}
        note = "This is the share of different n-grams among all that were sampled."
        found += family(runs, f"Distinct-n{of}", distinct, note)
    return found


def training(run: RunData) -> list[Panel]:
    """Loss, margin and accuracy by optimizer step."""
    rows = [row for row in run.metrics if row["kind"] == "train"]
    found = []
    for title, name, percent in (
        ("Training loss", "loss", False),
        ("Training margin", "rewards/margins", False),
        ("Training accuracy", "rewards/accuracies", True),
    ):
        points = [
            (
                row["iteration"],
                math.nan
                if percent and _at_reference(run, row)
                else run.number(row, name),
            )
            for row in rows
            if name in row
        ]
        if points:
            svg, size = figures.by_step(points, percent=percent)
            note = "At a dotted line an iteration begins, with a new reference."
            if percent:
                note = f"Steps at which policy = reference are left out. {note}"
            if size > 1:
                note += f" Each point is the mean of {size} steps."
            found.append(Panel(title, note, [], svg))
    return found


def _at_reference(run: RunData, row: Row) -> bool:
    """Whether the policy was its own reference when a step began."""
    weights = run.references.get(row["iteration"], {}).get("weights")
    if not weights:
        return False
    config = run.config.get("reference", {})
    moves = config.get("rule") == "trust_region"
    resets = moves and config.get("trust_region_alpha") == 1
    every = config.get("trust_region_tau") if resets else None
    start = run.config.get("train_from", "previous")
    return policy_is_reference(np.asarray(weights, float), row["step"], every, start)


def time(run: RunData) -> list[Panel]:
    """Seconds by phase and iteration."""
    seconds: dict[int, dict[str, float]] = {}
    for row in run.timing:
        if "seconds" in row and row["kind"] != "command":
            parts = seconds.setdefault(row["iteration"], {})
            parts[row["kind"]] = run.seconds(row)
    if not seconds:
        return []
    for parts in seconds.values():
        whole = parts.pop("iteration", None)
        if whole is not None:
            parts["the rest"] = max(0.0, whole - sum(parts.values()))
    names = list(dict.fromkeys(name for parts in seconds.values() for name in parts))
    names.sort(key=lambda name: KINDS.index(name) if name in KINDS else len(KINDS))
    order = sorted(seconds)
    parts_of = {n: np.array([seconds[t].get(n, 0.0) for t in order]) for n in names}
    note = (
        "Save is that of the policy. Of a phase that was continued its last session "
        "counts."
    )
    svg = figures.stacked([str(t) for t in order], parts_of)
    return [Panel("Time by phase", note, names, svg, filled=True)]
