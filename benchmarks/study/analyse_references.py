"""Tables and the figure of the study of docs/study.md.

    python benchmarks/study/analyse_references.py

Prints the tables of docs/results.md, from references.jsonl beside this file, and draws
docs/study-references.png. The unit is the seed, differences are paired by seed.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.stats
from analyse import bounds, difference, interval
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from references import (
    ARMS,
    EXPLORED,
    FIXED,
    FRESH_SEEDS,
    PRESSED,
    PRIMARY,
    RATES,
    STOPPED,
    choose,
)
from references_rows import FILE, CellRow, read_rows

from tpmm_jax.errors import BadInput

PICTURE = pathlib.Path(__file__).parents[2] / "docs/study-references.png"
TITLES = {
    "pressed": f"pressed: all at {PRESSED:g}",
    "tuned": "tuned: each at its best learning rate",
}
LAST = FIXED["iterations"]
SMALLEST = 0.10  # the smallest difference of interest
COLOURS = dict(zip(PRIMARY, ("#000000", "#d55e00", "#009e73", "#0072b2")))

# arm -> seed -> its cell, at one rate for each arm
Arms = dict[str, dict[int, CellRow]]


def select(rows: Sequence[CellRow]) -> dict[str, Arms]:
    """Returns the cells of both arms of the study, of the first seeds that have all."""
    best = choose(rows)["rates"]
    rates = {
        "pressed": dict.fromkeys((*PRIMARY, STOPPED), PRESSED),
        "tuned": {arm: best.get(arm) for arm in (*ARMS, STOPPED)},
    }
    fresh = [row for row in rows if row["phase"] == "fresh"]
    studies: dict[str, Arms] = {
        study: {
            arm: {
                int(row["seed"]): row
                for row in fresh
                if row["arm"] == arm.replace(STOPPED, "previous")
                and row["rate"] == rate
            }
            for arm, rate in of.items()
        }
        for study, of in rates.items()
    }
    every = [cells for arms in studies.values() for cells in arms.values()]
    whole = []
    for seed in FRESH_SEEDS:
        if not all(seed in cells for cells in every):
            break
        whole.append(seed)
    return {
        study: {arm: {seed: cells[seed] for seed in whole} for arm, cells in of.items()}
        for study, of in studies.items()
    }


def ends(arms: Arms, arm: str, name: str = "reward/mean", at: int = -1) -> np.ndarray:
    """Returns a measure of each seed's policy after an iteration, the last, [S]."""
    return np.array([cell[name][at] for cell in arms[arm].values()])


def stopped(arms: Arms) -> np.ndarray:
    """Returns the reward of each seed's ``previous``, stopped early, [S]."""
    cells = arms[STOPPED].values()
    return np.array([cell["reward/mean"][cell["stopped_at"]] for cell in cells])


def questions(arms: Arms, peak: int) -> dict[str, np.ndarray]:
    """Returns the differences of one arm of the study, each [S].

    Args:
      peak: the iteration at which the tuning's ``previous`` was highest.
    """
    learned, previous = ends(arms, "learned"), ends(arms, "previous")
    found = {
        f"1. previous: theta_6 - its peak of the tuning, theta_{peak}": previous
        - ends(arms, "previous", at=peak),
        "2. learned - previous": learned - previous,
        "3. learned - uniform": learned - ends(arms, "uniform"),
    }
    for arm in ("sft", "best"):
        if arm in arms:
            found[f"4. learned - {arm}"] = learned - ends(arms, arm)
    found["4. learned - previous, stopped early"] = learned - stopped(arms)
    for arm in PRIMARY:
        mean = ends(arms, arm, "ship/reward/mean")
        found[f"5. {arm}: mean - theta_6"] = mean - ends(arms, arm)
    for arm in ("dr_dpo", "robust"):
        if arm in arms:
            found[f"6. {arm} - previous"] = ends(arms, arm) - previous
            found[f"6. learned - {arm}"] = learned - ends(arms, arm)
    return found


def at_equal_kl(arms: Arms, one: str, other: str) -> np.ndarray:
    """Returns one arm's reward minus another's where their KL is the same, [S].

    That KL is the smaller one of the two last policies; reward is interpolated along
    each seed's path.
    """
    gaps = []
    for cells in zip(arms[one].values(), arms[other].values(), strict=True):
        # A path that turns back is read where it first comes to a KL.
        paths = [np.maximum.accumulate(cell["kl/theta_0"]) for cell in cells]
        kl = min(cell["kl/theta_0"][-1] for cell in cells)
        first, second = (
            np.interp(kl, path, cell["reward/mean"]) for path, cell in zip(paths, cells)
        )
        gaps.append(first - second)
    return np.array(gaps)


def equal_kl_table(studies: Mapping[str, Arms]) -> str:
    """Returns ``learned`` minus the other arms at equal KL, without a test."""
    table = [["at equal KL to theta_0", "arm of the study", "difference, 95 %"]]
    table += [
        [f"learned - {arm}", study, told(at_equal_kl(arms, "learned", arm))]
        for study, arms in studies.items()
        for arm in arms
        if arm not in ("learned", STOPPED)
    ]
    return markdown(table)


def p_value(gap: np.ndarray) -> float:
    """Returns p of Student's t; 1 where all differences are 0."""
    return float(scipy.stats.ttest_1samp(gap, 0).pvalue) if np.any(gap) else 1.0


def holm(p: Sequence[float]) -> np.ndarray:
    """Returns p by Holm's step-down method, [T].

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    scaled = np.asarray(p)[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted


def primary_table(tuned: Mapping[str, np.ndarray]) -> str:
    """Returns the three tests of the tuned arm; 4 holds if all its parts do."""
    parts = {n: [q for q in tuned if q.startswith(f"{n}.")] for n in (2, 3, 4)}
    p = holm([max(p_value(tuned[q]) for q in some) for some in parts.values()])
    rows = [["primary", "difference, 95 %", "could have found", "equal seeds", "p"]]
    for (_, some), after in zip(parts.items(), p):
        for q in some:
            gap = tuned[q]
            free = len(gap) - 1
            reach = scipy.stats.t.ppf(0.975, free) + scipy.stats.t.ppf(0.8, free)
            rows.append([
                q, told(gap), f"{reach * scipy.stats.sem(gap):.2f}",
                f"{np.sum(gap == 0)} of {len(gap)}", f"{after:.3f}",
            ])  # fmt: skip
    return markdown(rows)


def secondary_table(studies: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Returns all other tests, with p by Holm over all of them."""
    gaps = {
        (study, q): gap
        for study, found in studies.items()
        for q, gap in found.items()
        if not (study == "tuned" and q[0] in "234")
    }
    p = dict(zip(gaps, holm([p_value(gap) for gap in gaps.values()])))
    rows = [["secondary", "arm of the study", "difference, 95 %", "p"]]
    rows += [[q, s, told(gap), f"{p[s, q]:.3f}"] for (s, q), gap in gaps.items()]
    return markdown(rows)


def told(gap: np.ndarray) -> str:
    """Returns a difference as text; "within 0.10" where its interval is."""
    _, low, high = interval(gap)
    inside = low > -SMALLEST and high < SMALLEST
    return difference(gap) + (f", within {SMALLEST:.2f}" if inside else "")


def arm_table(arms: Arms) -> str:
    """Returns the table of one arm of the study."""
    length = len(next(iter(arms["previous"].values()))["reward/mean"])
    head = [
        "arm", "rate", *map(str, range(length)), f"theta_{length - 1}, 95 %",
        "mean, 95 %", "KL", "KL of the mean", "VADER", "tokens", "cut",
        "weights learned", "failed",
    ]  # fmt: skip
    rows = [head]
    for arm, cells in arms.items():
        if arm == STOPPED:
            continue
        curves = np.array([cell["reward/mean"] for cell in cells.values()])
        last, mean = curves[:, -1], ends(arms, arm, "ship/reward/mean")
        learned, open_ = np.mean([cell["learned"] for cell in cells.values()], axis=0)
        rows.append([
            arm, f"{next(iter(cells.values()))['rate']:g}",
            *(f"{x:.2f}" for x in curves.mean(axis=0)),
            f"{last.mean():.2f} {bounds(*interval(last)[1:])}",
            f"{mean.mean():.2f} {bounds(*interval(mean)[1:])}",
            f"{ends(arms, arm, 'kl/theta_0').mean():.1f}",
            f"{ends(arms, arm, 'ship/kl/theta_0').mean():.1f}",
            f"{np.mean([cell['vader'] for cell in cells.values()]):.2f}",
            f"{ends(arms, arm, 'length/mean').mean():.1f}",
            f"{100 * ends(arms, arm, 'length/cut').mean():.0f} %",
            f"{learned:.1f} of {open_:.0f}" if arm == "learned" else "",
            f"{sum(bool(cell['failed']) for cell in cells.values())}",
        ])  # fmt: skip
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as a Markdown table, of which the first is the head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    columns = lines[0].count("|") - 1
    return "\n".join([lines[0], "|" + "---|" * columns, *lines[1:]])


def draw(studies: Mapping[str, Arms], path: pathlib.Path) -> None:
    """Draws reward against iteration and against KL, theta_t and the mean."""
    figure = Figure(figsize=(10, 3.6 * len(studies)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(studies), 2, sharey=True, squeeze=False)
    for (by_iteration, by_kl), (study, arms) in zip(panels, studies.items()):
        for arm in PRIMARY:
            cells, colour = arms[arm].values(), COLOURS[arm]
            for prefix, dash in (("", "-"), ("ship/", "--")):
                reward, kl = (
                    np.mean([cell[prefix + name] for cell in cells], axis=0)
                    for name in ("reward/mean", "kl/theta_0")
                )
                look = {"color": colour, "linestyle": dash, "linewidth": 2}
                label = arm if not prefix else f"{arm}, mean"
                by_iteration.plot(range(LAST + 1), reward, label=label, **look)
                by_kl.plot(kl, reward, marker="o", markersize=3, **look)
        count = len(next(iter(arms.values())))
        by_iteration.set_title(f"{TITLES[study]}, {count} seeds", loc="left")
        by_iteration.set_ylabel("reward")
        by_iteration.set_xlabel("iteration")
        by_kl.set_xlabel("KL to theta_0, nats per answer")
        for axes in (by_iteration, by_kl):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="#e6e6e6", linewidth=0.8)
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False)
    figure.savefig(path, facecolor="white", metadata={"Software": None})


def tuning_table(rows: Sequence[CellRow]) -> str:
    """Returns the mean reward of the tuning by arm and rate, the chosen one in bold."""
    chosen = choose(rows)
    table = [["tuning", *(f"{rate:g}" for rate in RATES)]]
    for arm, best in chosen["rates"].items():
        means = chosen["means"][arm]
        told_means = {rate: f"{mean:.2f}" for rate, mean in means.items()}
        told_means[best] = f"**{told_means[best]}**"
        table.append([arm, *(told_means.get(rate, "") for rate in RATES)])
    return markdown(table)


def exploring_table(rows: Sequence[CellRow]) -> str:
    """Returns the exploratory settings, each beside ``learned`` of the same seeds."""
    settings: Arms = {
        name: {
            int(row["seed"]): row
            for row in rows
            if row["phase"] == "explore" and row["arm"] == name
        }
        for name in EXPLORED
    }
    head = ["exploratory", "rate", "seeds", "theta_6", "- learned, 95 %", "mean", "KL"]
    table = [head]
    for name, cells in settings.items():
        both = {seed for seed in cells if seed in settings["learned"]}
        if len(both) < 2:
            continue
        arms = {
            arm: {seed: settings[arm][seed] for seed in sorted(both)}
            for arm in (name, "learned")
        }
        last = ends(arms, name)
        table.append([
            name, f"{next(iter(cells.values()))['rate']:g}", f"{len(both)}",
            f"{last.mean():.2f}", difference(last - ends(arms, "learned")),
            f"{ends(arms, name, 'ship/reward/mean').mean():.2f}",
            f"{ends(arms, name, 'kl/theta_0').mean():.1f}",
        ])  # fmt: skip
    return markdown(table)


def by_arm(rows: Iterable[CellRow]) -> Arms:
    """Returns the cells of the seeds that every arm has."""
    arms: Arms = {}
    for row in rows:
        arms.setdefault(row["arm"], {})[int(row["seed"])] = row
    whole = sorted(set.intersection(*map(set, arms.values()))) if arms else []
    return {arm: {seed: cells[seed] for seed in whole} for arm, cells in arms.items()}


def offline_table(rows: Sequence[CellRow]) -> str:
    """Returns each rule on files of pairs, beside ``previous`` of the same seeds."""
    offline = [row for row in rows if row["phase"] == "offline"]
    found = {
        data: by_arm(row for row in offline if row["data"] == data)
        for data in sorted({row["data"] for row in offline})
    }
    head = [
        "offline", "arm", "rate", "seeds", "accuracy of theta_6", "without flips",
        "- previous, 95 %", "all, without flips", "KL", "KL of the mean",
    ]  # fmt: skip
    table, without = [head], "heldout/unflipped"
    for data, arms in found.items():
        if len(seeds := sorted(arms["previous"])) < 2:
            continue
        for arm, cells in arms.items():
            last, base = (100 * ends(arms, of, without) for of in (arm, "previous"))
            every = np.mean([cell[without][1:] for cell in cells.values()])
            table.append([
                data, arm, f"{cells[seeds[0]]['rate']:g}", f"{len(seeds)}",
                f"{100 * ends(arms, arm, 'heldout/accuracy').mean():.1f} %",
                f"{last.mean():.1f} %", difference(last - base), f"{100 * every:.1f} %",
                f"{ends(arms, arm, 'kl/theta_0').mean():.1f}",
                f"{ends(arms, arm, 'ship/kl/theta_0').mean():.1f}",
            ])  # fmt: skip
    return markdown(table)


def elsewhere_table(rows: Sequence[CellRow]) -> str:
    """Returns the tuned arms on prompts out of the training's domain."""
    arms = by_arm(row for row in rows if row["phase"] == "elsewhere")
    head = [
        "elsewhere", "rate", "seeds", "theta_0", "theta_6, 95 %", "- previous, 95 %",
        "mean - theta_6, 95 %", "KL",
    ]  # fmt: skip
    table = [head]
    for arm, cells in arms.items():
        last, mean = ends(arms, arm), ends(arms, arm, "ship/reward/mean")
        table.append([
            arm, f"{next(iter(cells.values()))['rate']:g}", f"{len(cells)}",
            f"{ends(arms, arm, at=0).mean():.2f}",
            f"{last.mean():.2f} {bounds(*interval(last)[1:])}",
            difference(last - ends(arms, "previous")), difference(mean - last),
            f"{ends(arms, arm, 'kl/theta_0').mean():.1f}",
        ])  # fmt: skip
    return markdown(table)


def print_tables(file: pathlib.Path, picture: pathlib.Path) -> None:
    """Prints every table and draws the figure."""
    rows = read_rows(file)
    studies = select(rows)
    seeds = list(studies["tuned"]["learned"])
    if len(seeds) < 2:
        raise BadInput(f"{file} has {len(seeds)} whole seeds; wanted two or more")
    print(f"{tuning_table(rows)}\n")
    for name, arms in studies.items():
        told_seeds = f"{len(seeds)} seeds, {seeds[0]} to {seeds[-1]}"
        print(f"**{name}**, {told_seeds}\n\n{arm_table(arms)}\n")
    peaks = choose(rows)["peaks"]
    found = {
        name: questions(arms, peaks[next(iter(arms["previous"].values()))["rate"]])
        for name, arms in studies.items()
    }
    print(f"{primary_table(found['tuned'])}\n\n{secondary_table(found)}\n")
    print(f"{equal_kl_table(studies)}\n\n{exploring_table(rows)}\n")
    print(f"{offline_table(rows)}\n\n{elsewhere_table(rows)}")
    smollm2 = by_arm(row for row in rows if row["phase"] == "smollm2")
    if any(smollm2.values()):
        print(f"\n**SmolLM2**\n\n{arm_table(smollm2)}")
    draw(studies, picture)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    parser = argparse.ArgumentParser(description="Analyses the study of docs/study.md.")
    parser.add_argument("--file", type=pathlib.Path, default=FILE)
    parser.add_argument("--picture", type=pathlib.Path, default=PICTURE)
    args = parser.parse_args(argv)
    print_tables(args.file, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
