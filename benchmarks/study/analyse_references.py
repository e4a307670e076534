"""Tables and the figure of the study of docs/study.md, from its fresh cells.

    python benchmarks/study/analyse_references.py gather --workdir runs/references
    python benchmarks/study/analyse_references.py tables

``gather`` writes references.jsonl beside this file: one line for each cell, all that
the tables need, so that anyone can analyse the study again. ``tables`` prints the
tables of docs/results.md and draws docs/study-references.png. The unit is the seed,
differences are paired by seed. Needs the demo extra.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from analyse import bounds, difference, interval
from early_stopping import pooled_accuracies, stopping_place
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from references import (
    ARMS,
    FIXED,
    FRESH_SEEDS,
    PRESSED,
    STOPPED,
    fresh_grid,
    read_chosen,
)
from run import finished

from tpmm_jax.data.records import Rollout
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.rewards.vader import sentiment
from tpmm_jax.store.files import write_text
from tpmm_jax.store.records import read_records

HERE = pathlib.Path(__file__).parent
FILE, PICTURE = HERE / "references.jsonl", HERE.parents[1] / "docs/study-references.png"
LAST = FIXED["iterations"]
STUDIES = ("pressed", "tuned")
SMALLEST = 0.10  # the smallest difference of interest
KEPT = ("reward/mean", "kl/theta_0", "length/mean", "length/cut")
PRIMARY = ("previous", "sft", "uniform", "learned")
COLOURS = dict(zip(PRIMARY, ("#000000", "#d55e00", "#009e73", "#0072b2")))

CellRow = dict[str, Any]
# arm -> seed -> its cell, at one rate for each arm
Arms = dict[str, dict[int, CellRow]]


def gather(workdir: pathlib.Path, console: RunConsole) -> list[CellRow]:
    """Returns a row for each fresh cell.

    Raises:
      BadInput: a cell has neither ended nor failed: the study is not over.
    """
    grid, found, chosen = fresh_grid(workdir), [], read_chosen(workdir)
    failed = json.loads((workdir / "failed.json").read_text(encoding="utf-8"))
    cells = grid.cells()
    with console.phase("gather", len(cells), "cells") as bar:
        for cell in cells:
            folder = workdir / "fresh" / "cells" / cell.name
            if cell.name not in failed and not finished(folder, grid.load(cell)):
                raise BadInput(f"{folder} is not finished; run fresh to its end first")
            arm, rate = cell.levels["arm"], float(cell.levels["rate"])
            best = {"pressed": PRESSED, "tuned": chosen["rates"][arm]}
            row = {
                "seed": int(cell.levels["seed"]), "arm": arm, "rate": rate,
                "serves": [[s, arm] for s in STUDIES if rate == best[s]],
                "failed": failed.get(cell.name, ""),
            }  # fmt: skip
            if arm == "previous":
                best["tuned"] = chosen["rates"][STOPPED]
                row["serves"] += [[s, STOPPED] for s in STUDIES if rate == best[s]]
                row["peak"] = chosen["peaks"][f"{rate:g}"]
            found.append(row | read_cell(folder, stops=arm == "previous"))
            bar.advance(1)
    return found


def read_cell(folder: pathlib.Path, *, stops: bool) -> CellRow:
    """Returns what the tables need of one run, each a list by iteration.

    A run that failed keeps its last values to the end.

    Args:
      stops: with where held-out pairs would have it stopped.
    """
    rows = iteration_rows(folder)
    done = len(rows) - 1
    padded = [*rows, *[rows[-1]] * (LAST - done)]
    found: CellRow = {}
    for name in KEPT:
        found[name] = [_round(row[name]) for row in padded]
        # Of theta_0 alone, itself.
        means = [row.get(f"ship/{name}", row[name]) for row in padded[1:]]
        found[f"ship/{name}"] = [_round(x) for x in means]
    files = {"": "evaluation", "ship/": "evaluation-ship" if done else "evaluation"}
    for prefix, file in files.items():
        answers = read_records(folder / f"iterations/{done:03d}/{file}.jsonl", Rollout)
        texts = [row.prompt for row in answers], [row.responses for row in answers]
        found[f"{prefix}vader"] = _round(np.mean(sentiment(*texts)))
    records = [
        json.loads((folder / f"iterations/{t:03d}/reference.json").read_text())
        for t in range(1, done + 1)
    ]
    # Where more than one checkpoint could have a weight.
    open_ = [
        record["learned"]
        for record in records
        if len(record.get("accuracies", ())) - len(record.get("left_out", ())) > 1
    ]
    found["learned"] = [sum(open_), len(open_)]
    if stops:
        accuracies = pooled_accuracies(folder)
        found["stopped_at"] = stopping_place(accuracies)
        found["accuracies"] = [
            [_round(np.mean(of[k])) for k in sorted(of)] for of in accuracies
        ]
    return found


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def select(rows: Sequence[CellRow]) -> dict[str, Arms]:
    """Returns the cells of both arms of the study, of the first seeds that have all."""
    studies: dict[str, Arms] = {s: {a: {} for a in (*ARMS, STOPPED)} for s in STUDIES}
    for row in rows:
        for study, arm in row["serves"]:
            studies[study][arm][row["seed"]] = row
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


def ends(
    arms: Arms, arm: str, name: str = "reward/mean", at: int | None = None
) -> np.ndarray:
    """Returns a measure of each seed's policy after an iteration, the last, [S]."""
    offset = 1 if name.startswith("ship/") else 0
    place = LAST if at is None else at
    return np.array([cell[name][place - offset] for cell in arms[arm].values()])


def stopped(arms: Arms) -> np.ndarray:
    """Returns the reward of each seed's ``previous``, stopped early, [S]."""
    cells = arms[STOPPED].values()
    return np.array([cell["reward/mean"][cell["stopped_at"]] for cell in cells])


def questions(arms: Arms) -> dict[str, np.ndarray]:
    """Returns the differences of one arm of the study, each [S]."""
    learned, previous = ends(arms, "learned"), ends(arms, "previous")
    peak = next(iter(arms["previous"].values()))["peak"]
    found = {
        f"1. previous: theta_6 - its peak of the tuning, theta_{peak}": previous
        - ends(arms, "previous", at=peak),
        "2. learned - previous": learned - previous,
        "3. learned - uniform": learned - ends(arms, "uniform"),
        "4. learned - sft": learned - ends(arms, "sft"),
        "4. learned - best": learned - ends(arms, "best"),
        "4. learned - previous, stopped early": learned - stopped(arms),
    }
    for arm in PRIMARY:
        mean = ends(arms, arm, "ship/reward/mean")
        found[f"5. {arm}: mean - theta_6"] = mean - ends(arms, arm)
    for arm in ("dr_dpo", "robust"):
        found[f"6. {arm} - previous"] = ends(arms, arm) - previous
        found[f"6. learned - {arm}"] = learned - ends(arms, arm)
    return found


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
    head = [
        "arm", "rate", *map(str, range(LAST + 1)), "theta_6, 95 %", "mean, 95 %",
        "KL", "KL of the mean", "VADER", "tokens", "cut", "weights learned", "failed",
    ]  # fmt: skip
    rows = [head]
    for arm in ARMS:
        cells = arms[arm]
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
                steps = range(LAST + 1 - len(reward), LAST + 1)
                look = {"color": colour, "linestyle": dash, "linewidth": 2}
                label = arm if not prefix else f"{arm}, mean"
                by_iteration.plot(steps, reward, label=label, **look)
                by_kl.plot(kl, reward, marker="o", markersize=3, **look)
        count = len(next(iter(arms.values())))
        by_iteration.set_title(f"{study}, {count} seeds", loc="left")
        by_iteration.set_ylabel("reward")
        by_iteration.set_xlabel("iteration")
        by_kl.set_xlabel("KL to theta_0, nats per answer")
        for axes in (by_iteration, by_kl):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="#e6e6e6", linewidth=0.8)
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False)
    figure.savefig(path, facecolor="white", metadata={"Software": None})


def print_tables(file: pathlib.Path, picture: pathlib.Path) -> None:
    """Prints every table and draws the figure."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    studies = select(rows)
    seeds = list(studies["tuned"]["learned"])
    if len(seeds) < 2:
        raise BadInput(f"{file} has {len(seeds)} whole seeds; wanted two or more")
    for name, arms in studies.items():
        told_seeds = f"{len(seeds)} seeds, {seeds[0]} to {seeds[-1]}"
        print(f"**{name}**, {told_seeds}\n\n{arm_table(arms)}\n")
    found = {name: questions(arms) for name, arms in studies.items()}
    print(f"{primary_table(found['tuned'])}\n\n{secondary_table(found)}")
    draw(studies, picture)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    parser = argparse.ArgumentParser(description="Analyses the study of docs/study.md.")
    parser.add_argument("phase", choices=("gather", "tables"))
    parser.add_argument("--workdir", type=pathlib.Path, help="of gather")
    parser.add_argument("--file", type=pathlib.Path, default=FILE)
    parser.add_argument("--picture", type=pathlib.Path, default=PICTURE)
    args = parser.parse_args(argv)
    if args.phase == "tables":
        print_tables(args.file, args.picture)
    elif args.workdir is None:
        parser.error("gather needs --workdir")
    else:
        rows = gather(args.workdir.resolve(), RunConsole())
        write_text(args.file, "".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
