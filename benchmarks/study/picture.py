"""Draws docs/study.png, the README's picture, from the tables of docs/results.md.

    python benchmarks/study/picture.py

Nothing is computed here: every number is one that docs/results.md states.
"""

import pathlib
import re

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

DOCS = pathlib.Path(__file__).parents[2] / "docs"
REGIME = "falls"
# Rules with a line of their own; the others are drawn thin and grey.
COLOURS = {
    "previous": "#000000",
    "uniform": "#009e73",
    "learned": "#0072b2",
    "learned_layer": "#d55e00",
}
GREY = "#b5b5b5"


def read_regime(text: str, regime: str) -> dict[str, dict[str, str]]:
    """Returns {rule: {column: cell}} of one regime's table."""
    table = text.split(f"**regime {regime}**")[1].strip().split("\n\n")[0]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
    ]
    return {row[0]: dict(zip(head[1:], row[1:])) for row in rows}


def numbers(cell: str) -> list[float]:
    """Returns every number of a cell."""
    return [float(x) for x in re.findall(r"[-+]?\d+\.\d+", cell)]


def draw_curves(axes: plt.Axes, table: dict[str, dict[str, str]]) -> None:
    """Draws the mean reward of each rule by iteration."""
    for rule, row in sorted(table.items(), key=lambda item: item[0] in COLOURS):
        steps = [column for column in row if column.isdigit()]
        rewards = [float(row[column]) for column in steps]
        strong = rule in COLOURS
        axes.plot(
            range(len(steps)),
            rewards,
            color=COLOURS.get(rule, GREY),
            linewidth=2.2 if strong else 1.2,
            zorder=3 if strong else 2,
        )
    axes.set_xlabel("iteration")
    axes.set_ylabel("mean reward")
    axes.set_title("Reward, 40 % of the labels flipped", loc="left")


def draw_differences(axes: plt.Axes, table: dict[str, dict[str, str]]) -> None:
    """Draws each rule's last reward minus that of "previous", seed by seed."""
    base = numbers(table["previous"]["seeds"])
    rules = [rule for rule in table if rule != "previous"]
    for y, rule in enumerate(reversed(rules)):
        column = next(c for c in table[rule] if "previous" in c)
        mean, low, high = numbers(table[rule][column])
        colour = COLOURS.get(rule, "#8a8a8a")
        axes.plot([low, high], [y, y], color=colour, linewidth=2)
        seeds = [a - b for a, b in zip(numbers(table[rule]["seeds"]), base)]
        axes.scatter(seeds, [y] * len(seeds), color=colour, marker="|", s=90)
        axes.scatter([mean], [y], color=colour, s=36, zorder=3)
    axes.axvline(0, color="#000000", linewidth=1)
    axes.set_yticks(range(len(rules)), list(reversed(rules)))
    for label in axes.get_yticklabels():
        label.set_color(COLOURS.get(label.get_text(), "#555555"))
    axes.set_xlabel("bar: 95 % interval over seeds; ticks: the seeds")
    axes.set_title("After iteration 6, minus previous", loc="left")


def main() -> None:
    table = read_regime((DOCS / "results.md").read_text(encoding="utf-8"), REGIME)
    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.7), layout="constrained")
    draw_curves(left, table)
    draw_differences(right, table)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y" if axes is left else "x", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    for rule, colour in COLOURS.items():
        end = float(table[rule]["6"])
        left.annotate(rule, (6, end), xytext=(6.1, end), va="center", color=colour)
    figure.savefig(DOCS / "study.png", dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    main()
