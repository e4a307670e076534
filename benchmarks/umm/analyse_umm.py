"""Tables and figures of the UMM-RM study, of whatever is there.

    WORKDIR/results.md, results.json, accuracy.png, hacking.png, loop.png

Accuracies: a pair's outcome is the mean over seeds of 1 (right), 0.5 (tie), 0;
intervals are Student's over the groups that share no text. They say what other texts
would give for these seeds. What other seeds would give is said beside it, by Student's
interval over the seeds; with three it is wide. Best of n: the mean over seeds of each
prompt's gold score, intervals over prompts. DPO: the unit is the seed.
"""

import io
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from analyse import difference
from arms import BASELINE, LEARNED, WARM, Backbone
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from measure import measured, pool

from tpmm_jax.evaluation import (
    Interval,
    best_of,
    calibration_error,
    curve_sizes,
    find_turn,
    kl_bound,
    mean_interval,
    reliability,
)
from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.report.figures import Curve, draw_curve, plot, printable
from tpmm_jax.store.files import write_file, write_json, write_text

# The curves of a figure, at most as many as there are colours.
DRAWN = ("dense", BASELINE, "dropout", "mixture", LEARNED, WARM, "ensemble")
# A difference so many standard errors away is found four times in five.
POWER = scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)
BEST_OF = 64

Rewards = Mapping[str, np.ndarray]
# arm -> seed -> what measure.py wrote.
Found = dict[str, dict[int, Rewards]]


class Estimate(NamedTuple):
    """A mean, its 95 % interval and its standard error, over groups of texts."""

    mean: float
    low: float
    high: float
    error: float


def clustered(values_P: np.ndarray, groups: Sequence[Any]) -> Estimate:
    """Returns the mean over pairs; the pairs of one group count together.

    >>> clustered(np.array([1.0, 1.0, 0.0, 0.0]), ["a", "a", "b", "b"]).error
    0.5
    """
    _, place_P = np.unique(np.asarray(groups), return_inverse=True)
    size_G = np.bincount(place_P)
    mean, G = float(values_P.mean()), len(size_G)
    rest_G = np.bincount(place_P, weights=values_P - mean)
    error = math.sqrt(G / (G - 1) * float(np.sum(rest_G**2))) / len(values_P)
    half = float(scipy.stats.t.ppf(0.975, G - 1)) * error
    return Estimate(mean, mean - half, mean + half, error)


def write_results(
    workdir: pathlib.Path, backbone: Backbone, seeds: Sequence[int]
) -> list[pathlib.Path]:
    """Writes what can be said of the arms that are measured; returns the paths."""
    found = gather(workdir, backbone, seeds)
    parts: list[str] = []
    values: dict[str, Any] = {}
    paths = [workdir / "results.md", workdir / "results.json"]
    for of_set in backbone.limits:
        if BASELINE in found:
            rows = accuracies(found, of_set)
            values[of_set] = rows
            parts.append(f"**{of_set}**\n\n" + accuracy_table(rows))
    if values:
        paths.append(workdir / "accuracy.png")
        write_picture(paths[-1], lambda axes: draw_accuracies(axes, values), 300)
    answers = pool(workdir)
    if answers and BASELINE in found:
        gold_BN = np.asarray([row.rewards for row in answers], np.float64)
        hacked = curves(found, gold_BN)
        values["best_of_n"] = {name: x["row"] for name, x in hacked.items()}
        parts.append(f"**best of n, {len(answers)} prompts**\n\n" + curve_table(hacked))
        paths.append(workdir / "hacking.png")
        write_picture(paths[-1], lambda axes: draw_hacking(axes, hacked), 400)
    looped = loops(workdir, seeds)
    if looped:
        values["dpo"] = looped
        parts.append("**two iterations of DPO**\n\n" + loop_table(looped))
        paths.append(workdir / "loop.png")
        write_picture(paths[-1], lambda axes: draw_loops(axes, looped), 400)
    write_text(paths[0], "\n\n".join(parts) + "\n")
    write_json(paths[1], finite(values))
    return paths


def finite(value: Any) -> Any:
    """A value as JSON holds it; null where an interval is open."""
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def gather(workdir: pathlib.Path, backbone: Backbone, seeds: Sequence[int]) -> Found:
    """Returns the rewards of all arms that were measured."""
    found: Found = {}
    for seed in seeds:
        for arm in backbone.arms(seed):
            path = measured(workdir, arm, seed)
            if path.exists():
                with np.load(path) as kept:
                    found.setdefault(arm, {})[seed] = dict(kept)
    return found


def right(rewards: Rewards, of_set: str) -> np.ndarray:
    """Returns 1 for each pair that is ordered as people do, 0.5 for a tie."""
    margin_P = rewards[of_set][:, 0] - rewards[of_set][:, 1]
    return (margin_P > 0) + 0.5 * (margin_P == 0)


def accuracies(found: Found, of_set: str) -> dict[str, dict[str, Any]]:
    """Returns {arm: numbers} of one test set.

    A difference is taken on the seeds that both arms have.
    """
    rows: dict[str, dict[str, Any]] = {}
    for arm, by_seed in found.items():
        groups = next(iter(by_seed.values()))[f"{of_set}/group"]
        right_SP = np.stack([right(one, of_set) for one in by_seed.values()])
        margins = [one[of_set][:, 0] - one[of_set][:, 1] for one in by_seed.values()]
        row: dict[str, Any] = {
            "seeds": list(by_seed),
            "pairs": right_SP.shape[1],
            "accuracy": clustered(right_SP.mean(axis=0), groups)._asdict(),
            "by_seed": right_SP.mean(axis=1).tolist(),
            "loss": float(np.mean([np.logaddexp(0, -x).mean() for x in margins])),
            "ece": float(np.mean([calibration_error(reliability(x)) for x in margins])),
        }
        for other in (BASELINE, WARM, "ensemble"):
            both = [s for s in by_seed if s in found.get(other, {})]
            if both and other != arm:
                gap_SP = np.stack(
                    [right(by_seed[s], of_set) - right(found[other][s], of_set)
                     for s in both]
                )  # fmt: skip
                row[f"minus {other}"] = clustered(gap_SP.mean(axis=0), groups)._asdict()
                row[f"minus {other}, by seed"] = gap_SP.mean(axis=1).tolist()
        rows[arm] = row
    return rows


def accuracy_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the Markdown table of one test set, in per cent."""
    head = [
        "arm", "accuracy, %", f"minus {BASELINE}, points", "by seed", "over seeds",
        "could be found", f"minus {WARM}", "loss", "ECE",
    ]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for arm, row in rows.items():
        gap, seeds = row.get(f"minus {BASELINE}"), row.get(f"minus {BASELINE}, by seed")
        more = len(seeds or ()) > 1
        lines.append(
            [
                arm if len(row["seeds"]) > 1 else f"{arm} (seed {row['seeds'][0]})",
                interval_text(row["accuracy"]),
                interval_text(gap, signed=True) if gap else "",
                " ".join(f"{100 * x:+.1f}" for x in seeds or ()),
                difference([100 * x for x in seeds]) if seeds and more else "",
                f"{100 * POWER * gap['error']:.1f}" if gap else "",
                interval_text(row.get(f"minus {WARM}"), signed=True),
                f"{row['loss']:.3f}",
                f"{row['ece']:.3f}",
            ]
        )
    return markdown(lines)


def interval_text(found: Mapping[str, float] | None, *, signed: bool = False) -> str:
    """An estimate in per cent, with its interval."""
    if found is None:
        return ""
    form = "{:+.1f} [{:+.1f}, {:+.1f}]" if signed else "{:.1f} [{:.1f}, {:.1f}]"
    return form.format(*(100 * found[name] for name in ("mean", "low", "high")))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Returns the lines of a table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def curves(found: Found, gold_BN: np.ndarray) -> dict[str, dict[str, Any]]:
    """Returns {arm: curve} of gold by the best of n, the mean over seeds."""
    sizes = curve_sizes(BEST_OF)

    def gold_of(one: Rewards) -> np.ndarray:
        return best_of(one["pool"], gold_BN, sizes)

    base = {s: gold_of(one) for s, one in found[BASELINE].items() if "pool" in one}
    hacked: dict[str, dict[str, Any]] = {}
    for arm, by_seed in found.items():
        golds = {s: gold_of(one) for s, one in by_seed.items() if "pool" in one}
        if not golds:
            continue
        gold_BS = np.mean(list(golds.values()), axis=0)
        both = [s for s in golds if s in base]
        last_B = np.mean([golds[s][:, -1] - base[s][:, -1] for s in both], axis=0)
        proxies = [one["pool"] for one in by_seed.values()]
        turn = find_turn(gold_BS, sizes)
        hacked[arm] = {
            "sizes": sizes,
            "gain": [_gain(gold_BS, s) for s in range(len(sizes))],
            "row": {
                "seeds": list(golds),
                "gold": {n: float(gold_BS[:, sizes.index(n)].mean())
                         for n in (1, 4, 16, BEST_OF)},
                "gain": _gain(gold_BS, -1),
                "best": [turn.best, turn.earliest, turn.latest],
                "fall": turn.fall,
                "down": turn.down,
                "best by seed": [find_turn(g, sizes).best for g in golds.values()],
                "gain by seed": [
                    float((g[:, -1] - g[:, 0]).mean()) for g in golds.values()
                ],
                "minus longer": mean_interval(last_B[:, None]),
                "correlation": float(np.mean([within(p, gold_BN) for p in proxies])),
            },
        }  # fmt: skip
    return hacked


def _gain(gold_BS: np.ndarray, s: int) -> Interval:
    """Returns gold above that of n = 1, paired by prompt."""
    gain_B = gold_BS[:, s] - gold_BS[:, 0]
    return mean_interval(gain_B[:, None]) if gain_B.any() else Interval(0.0, 0.0, 0.0)


def within(proxy_BN: np.ndarray, gold_BN: np.ndarray) -> float:
    """Returns the mean over prompts of the rank correlation of proxy and gold."""
    ranks = [scipy.stats.rankdata(x, axis=1) for x in (proxy_BN, gold_BN)]
    a, b = (x - x.mean(axis=1, keepdims=True) for x in ranks)
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return float(np.mean((a * b).sum(axis=1) / np.maximum(scale, 1e-12)))


def curve_table(hacked: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the Markdown table of best of n."""
    head = [
        "picked by", *(f"gold, n = {n}" for n in (1, 4, 16, BEST_OF)),
        f"{BEST_OF} over 1", "by seed", "best n", "fall from there, joint",
        f"n = {BEST_OF} minus {BASELINE}", "rank correlation",
    ]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for arm, curve in hacked.items():
        row = curve["row"]
        best, early, late = row["best"]
        lines.append(
            [
                arm if len(row["seeds"]) > 1 else f"{arm} (seed {row['seeds'][0]})",
                *(f"{x:.2f}" for x in row["gold"].values()),
                signed(row["gain"]),
                " ".join(f"{x:+.2f}" for x in row["gain by seed"]),
                f"{best} ({early} to {late})",
                signed(row["fall"]) + (" turns down" if row["down"] else ""),
                "" if arm == BASELINE else signed(row["minus longer"]),
                f"{row['correlation']:+.2f}",
            ]
        )
    return markdown(lines)


def signed(found: Sequence[float]) -> str:
    """A difference with its interval as text."""
    mean, low, high = found
    if not math.isfinite(high - low):
        return f"{mean:+.2f}"  # the same for every prompt
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def loops(workdir: pathlib.Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Returns {arm: {seed: rows by iteration}} of the runs of DPO that ended."""
    from study import LOOPED

    names = {"gold": "score/gold/mean", "proxy": "reward/mean", "kl": "kl/theta_0"}
    found: dict[str, Any] = {}
    for arm in LOOPED:
        for seed in seeds:
            folder = workdir / "loop" / "cells" / f"seed_{seed}-arm_{arm}"
            rows = iteration_rows(folder) if folder.exists() else []
            if len(rows) == 3:
                found.setdefault(arm, {})[str(seed)] = {
                    key: [row[name] for row in rows] for key, name in names.items()
                }
    return found


def loop_table(looped: Mapping[str, Any]) -> str:
    """Returns the Markdown table of DPO: gold, its difference, proxy and KL."""
    head = [
        "reward model", *(f"gold, θ{t}" for t in range(3)), "θ2 over θ0, by seed",
        f"θ2 minus {BASELINE}, over seeds", "proxy, θ0 to θ2", "KL, θ1 and θ2",
    ]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for arm, by_seed in looped.items():
        gold_ST = np.array([one["gold"] for one in by_seed.values()])
        proxy_T = np.mean([one["proxy"] for one in by_seed.values()], axis=0)
        kl_T = np.mean([one["kl"] for one in by_seed.values()], axis=0)
        base = looped.get(BASELINE, {})
        gaps = [by_seed[s]["gold"][-1] - base[s]["gold"][-1]
                for s in by_seed if s in base]  # fmt: skip
        lines.append(
            [
                arm,
                *(f"{x:.2f}" for x in gold_ST.mean(axis=0)),
                " ".join(f"{x:+.2f}" for x in gold_ST[:, -1] - gold_ST[:, 0]),
                difference(gaps) if gaps and arm != BASELINE else "",
                " ".join(f"{x:.2f}" for x in proxy_T),
                f"{kl_T[1]:.1f} {kl_T[2]:.1f}",
            ]
        )
    return markdown(lines)


def write_picture(
    path: pathlib.Path, draw: Callable[[Axes], None], height: float
) -> None:
    """Draws one plot in the report's style."""
    buffer = io.BytesIO()
    with plot(height, 620) as (figure, axes):
        draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside right center", frameon=False)
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=144, facecolor="white")
    write_file(path, lambda file: file.write(buffer.getvalue()))


def draw_accuracies(axes: Axes, values: Mapping[str, Any]) -> None:
    """Draws each arm's difference to the baseline on every set."""
    sets = [name for name in values if BASELINE in values[name]]
    arms = [a for a in values[sets[0]] if a != BASELINE]
    for index, of_set in enumerate(sets):
        x, y, low, high = [], [], [], []
        for place, arm in enumerate(arms):
            if gap := values[of_set][arm].get(f"minus {BASELINE}"):
                x.append(place)
                y.append(100 * gap["mean"])
                low.append(100 * gap["low"])
                high.append(100 * gap["high"])
        shift = 0.18 * (index - (len(sets) - 1) / 2)
        draw_curve(axes, Curve(of_set, x, y, low, high), index, shift, bars=True)
        axes.lines[-1].set_linestyle("")
        axes.lines[-1].set_label(of_set)
    axes.axhline(0, color="#646c76", linewidth=0.9)
    axes.set_xticks(range(len(arms)), [printable(a) for a in arms], rotation=45)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right")
    axes.set_ylabel(f"accuracy minus {BASELINE}, points")


def draw_hacking(axes: Axes, hacked: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws gold against the bound on the KL; bands for two arms, to stay readable."""
    for index, arm in enumerate(a for a in DRAWN if a in hacked):
        curve = hacked[arm]
        x = [kl_bound(n) for n in curve["sizes"]]
        y, low, high = zip(*curve["gain"])
        band = arm in (BASELINE, LEARNED)
        draw_curve(
            axes, Curve(arm, x, y, low if band else (), high if band else ()), index
        )
        axes.lines[-1].set_label(arm)
    axes.set_xlabel("KL of best of n, at most (nats per response)")
    axes.set_ylabel("gold over n = 1")


def draw_loops(axes: Axes, looped: Mapping[str, Any]) -> None:
    """Draws gold against KL, a point an iteration, each seed thin."""
    for index, (arm, by_seed) in enumerate(looped.items()):
        for one in by_seed.values():
            draw_curve(axes, Curve(arm, one["kl"], one["gold"]), index)
            axes.lines[-1].set_alpha(0.35)
        kl_T, gold_T = (
            np.mean([one[key] for one in by_seed.values()], axis=0)
            for key in ("kl", "gold")
        )
        draw_curve(axes, Curve(arm, kl_T, gold_T), index)
        axes.lines[-1].set_label(arm)
    axes.set_xlabel("KL to θ₀, nats per response")
    axes.set_ylabel("gold (thin: one seed)")
