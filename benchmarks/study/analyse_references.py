"""Tables and the figure of the study of docs/study.md, from its fresh cells.

    python benchmarks/study/analyse_references.py gather --workdir runs/references
    python benchmarks/study/analyse_references.py tables

``gather`` writes references.jsonl beside this file: one line for each cell, all that
the tables need, so that anyone can analyse the study again. ``tables`` prints the
tables of docs/results.md and draws docs/study-references.png. The unit is the seed,
differences are paired by seed, p is by Holm over all 24 tests. Needs the demo extra.
"""

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from analyse import bounds, difference, interval
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from references import ARMS, FRESH_SEEDS, PRESSED, fresh_grid
from run import finished

import tpmm_jax as tpmm
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.store.files import write_text

HERE = pathlib.Path(__file__).parent
FILE, PICTURE = HERE / "references.jsonl", HERE.parents[1] / "docs/study-references.png"
LAST, PEAK = 6, 2
SMALLEST = 0.10  # the smallest difference of interest
KEPT = ("reward/mean", "kl/theta_0", "length/mean", "length/cut")
PRIMARY = ("previous", "sft", "uniform", "learned")
COLOURS = dict(zip(PRIMARY, ("#000000", "#d55e00", "#009e73", "#0072b2")))

CellRow = dict[str, Any]
# arm -> seed -> its cell, at one rate for each arm
Arms = dict[str, dict[int, CellRow]]


def gather(workdir: pathlib.Path, console: RunConsole) -> list[CellRow]:
    """Returns a row for each finished fresh cell."""
    grid, found = fresh_grid(workdir), []
    best = json.loads((workdir / "chosen.json").read_text(encoding="utf-8"))
    cells = grid.cells()
    with console.phase("gather", len(cells), "cells") as bar:
        for cell in cells:
            folder = workdir / "fresh" / "cells" / cell.name
            if finished(folder, grid.load(cell)):
                arm, rate = cell.levels["arm"], float(cell.levels["rate"])
                row = {"seed": int(cell.levels["seed"]), "arm": arm, "rate": rate}
                row["best_rate"] = rate == best[arm]
                found.append(row | read_cell(folder, stops=arm == "previous"))
            bar.advance(1)
    return found


def read_cell(folder: pathlib.Path, *, stops: bool) -> CellRow:
    """Returns what the tables need of one run, each a list by iteration.

    Args:
      stops: with the pooled held-out accuracy, by which a run would be stopped.
    """
    rows = iteration_rows(folder)
    found: CellRow = {name: [_round(row[name]) for row in rows] for name in KEPT}
    for name in KEPT:
        found[f"ship/{name}"] = [_round(row[f"ship/{name}"]) for row in rows[1:]]
    records = [
        json.loads((folder / f"iterations/{t:03d}/reference.json").read_text())
        for t in range(1, len(rows))
    ]
    found["equal_weights"] = sum(record.get("learned") is False for record in records)
    if stops:
        found["accuracy"] = pooled_accuracy(folder, len(rows) - 1)
    return found


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def pooled_accuracy(folder: pathlib.Path, last: int) -> list[tuple[float, float]]:
    """Returns theta_t's accuracy on the hold-outs 1..t and its standard error, t > 0.

    A pair is right where log p rose more, from theta_0, on the answer that the label
    prefers. The error is that of a mean over prompts.
    """
    holdouts = []
    for t in range(1, last + 1):
        lines = (folder / f"iterations/{t:03d}/pairs.jsonl").read_text().splitlines()
        pairs = [json.loads(line) for line in lines]
        holdouts.append([pair for pair in pairs if pair["held_out"]])
    first = [logps_of(folder, 0, pairs) for pairs in holdouts]
    found = []
    for t in range(1, last + 1):
        ratios = [logps_of(folder, t, h) - x for h, x in zip(holdouts[:t], first)]
        right = np.concatenate([(x[:, 0] > x[:, 1]).astype(float) for x in ratios])
        prompts = [tuple(p["prompt_ids"]) for h in holdouts[:t] for p in h]
        means = [
            np.mean(right[[k for k, p in enumerate(prompts) if p == one]])
            for one in dict.fromkeys(prompts)
        ]
        found.append((_round(np.mean(means)), _round(scipy.stats.sem(means))))
    return found


def logps_of(folder: pathlib.Path, t: int, pairs: Sequence[CellRow]) -> np.ndarray:
    """Returns log p of (chosen, rejected) under theta_t, nats, [P, 2]."""
    model = tpmm.load(f"{folder}/trajectory@{t}")
    rows = [
        (p["prompt_ids"], p[x]) for p in pairs for x in ("chosen_ids", "rejected_ids")
    ]
    unique = list(dict.fromkeys((tuple(a), tuple(b)) for a, b in rows))
    length = max(len(a) + len(b) for a, b in unique)
    tokens = np.zeros((len(unique), length), np.int32)
    mask, answer = np.zeros_like(tokens), np.zeros_like(tokens)
    for i, (prompt, response) in enumerate(unique):
        ids = [*prompt, *response]
        tokens[i, : len(ids)], mask[i, : len(ids)] = ids, 1
        answer[i, len(prompt) : len(ids)] = 1
    logp = np.asarray(tpmm.log_probs(model, tokens, mask)) * answer[:, 1:]
    known = dict(zip(unique, logp.sum(axis=1, dtype=np.float64)))
    return np.array([known[tuple(a), tuple(b)] for a, b in rows]).reshape(-1, 2)


def stopped_at(accuracy: Sequence[Sequence[float]]) -> int:
    """Returns the policy before the first that falls by one standard error."""
    highest = -math.inf
    for t, (value, error) in enumerate(accuracy, start=1):
        if value < highest - error:
            return t - 1
        highest = max(highest, value)
    return len(accuracy)


def select(rows: Sequence[CellRow], *, tuned: bool) -> Arms:
    """Returns the cells of one arm of the study, of the seeds that have all arms."""
    arms: Arms = {arm: {} for arm in ARMS}
    for row in rows:
        if row["best_rate"] if tuned else row["rate"] == PRESSED:
            arms[row["arm"]][row["seed"]] = row
    whole = [seed for seed in FRESH_SEEDS if all(seed in arms[arm] for arm in ARMS)]
    return {arm: {seed: cells[seed] for seed in whole} for arm, cells in arms.items()}


def ends(arms: Arms, arm: str, name: str = "reward/mean", at: int = -1) -> np.ndarray:
    """Returns a measure of each seed's policy after an iteration, [S]."""
    return np.array([cell[name][at] for cell in arms[arm].values()])


def stopped(arms: Arms) -> np.ndarray:
    """Returns the reward of each seed's ``previous``, stopped early, [S]."""
    cells = arms["previous"].values()
    return np.array([c["reward/mean"][stopped_at(c["accuracy"])] for c in cells])


def questions(arms: Arms) -> dict[str, np.ndarray]:
    """Returns the family's differences of one arm of the study, each [S]."""
    learned, previous = ends(arms, "learned"), ends(arms, "previous")
    found = {
        "1. previous: theta_6 - theta_2": previous - ends(arms, "previous", at=PEAK),
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
    return found


def holm(p: Sequence[float]) -> np.ndarray:
    """Returns p by Holm's step-down method, [T]."""
    order = np.argsort(p)
    scaled = np.asarray(p)[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted


def test_table(studies: Mapping[str, Arms]) -> str:
    """Returns the table of all tests, with p by Holm over all of them."""
    gaps = {
        (s, q): gap for s, arms in studies.items() for q, gap in questions(arms).items()
    }
    p = holm([scipy.stats.ttest_1samp(gap, 0).pvalue for gap in gaps.values()])
    names = list(dict.fromkeys(question for _, question in gaps))
    by_name = dict(zip(gaps, p))
    rows = [["question", *(f"{s}: difference, 95 % | p" for s in studies)]]
    for name in names:
        row = [name]
        for study in studies:
            gap = gaps[study, name]
            _, low, high = interval(gap)
            none = " (no difference)" if low > -SMALLEST and high < SMALLEST else ""
            row.append(f"{difference(gap)}{none} | {by_name[study, name]:.3f}")
        rows.append(row)
    return markdown(rows)


def arm_table(arms: Arms) -> str:
    """Returns the table of one arm of the study."""
    head = [
        "arm", "rate", *map(str, range(LAST + 1)), "theta_6, 95 %", "mean, 95 %",
        "KL", "KL of the mean", "tokens", "cut", "equal weights",
    ]  # fmt: skip
    rows = [head]
    for arm, cells in arms.items():
        curves = np.array([cell["reward/mean"] for cell in cells.values()])
        last, mean = curves[:, -1], ends(arms, arm, "ship/reward/mean")
        equal = [cell["equal_weights"] for cell in cells.values()]
        rows.append([
            arm, f"{next(iter(cells.values()))['rate']:g}",
            *(f"{x:.2f}" for x in curves.mean(axis=0)),
            f"{last.mean():.2f} {bounds(*interval(last)[1:])}",
            f"{mean.mean():.2f} {bounds(*interval(mean)[1:])}",
            f"{ends(arms, arm, 'kl/theta_0').mean():.1f}",
            f"{ends(arms, arm, 'ship/kl/theta_0').mean():.1f}",
            f"{ends(arms, arm, 'length/mean').mean():.1f}",
            f"{100 * ends(arms, arm, 'length/cut').mean():.0f} %",
            f"{np.mean(equal):.1f} of {LAST}" if arm == "learned" else "",
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
    studies = {
        "pressed": select(rows, tuned=False),
        "tuned": select(rows, tuned=True),
    }
    for name, arms in studies.items():
        seeds = list(next(iter(arms.values())))
        print(f"**{name}**, seeds {seeds[0]} to {seeds[-1]}\n\n{arm_table(arms)}\n")
    print(test_table(studies))
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
