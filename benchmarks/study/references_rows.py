"""What is kept of each cell of the study of references: a line of references.jsonl.

The lines are all that its tables need, so that anyone can analyse the study again, and
so that a study may go on where the cells' folders are gone.
"""

import json
import pathlib
from typing import Any

import numpy as np
from early_stopping import pooled_accuracies, stopping_place
from flips import flipped
from grid import Cell, Grid
from run import run_cell

from tpmm_jax.config import Config
from tpmm_jax.data.records import Rollout
from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.rewards.vader import sentiment
from tpmm_jax.store.records import read_records

FILE = pathlib.Path(__file__).parent / "references.jsonl"
KEPT = ("reward/mean", "kl/theta_0", "length/mean", "length/cut")
# Not measured of what is shipped.
OF_POLICY = ("heldout/accuracy",)

CellRow = dict[str, Any]


def read_rows(file: pathlib.Path) -> list[CellRow]:
    """Returns the lines of the file; none where there is no file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def run_and_keep(
    grid: Grid, cell: Cell, workdir: pathlib.Path, *, phase: str, file: pathlib.Path
) -> str | None:
    """Runs one cell and appends its line; returns what went wrong, in words, or None.

    A cell that failed before theta_0 was evaluated has no line, and is run again.
    """
    with flipped(cell.levels["arm"]):
        message = run_cell(grid, cell, workdir)
    folder = workdir / "cells" / cell.name
    if message is not None and not iteration_rows(folder):
        return message
    config = grid.load(cell)
    row = {
        "phase": phase, "cell": cell.name, **cell.levels, "failed": message or "",
        "rate": config.train.learning_rate,
        **read_cell(folder, config),
    }  # fmt: skip
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")  # one write: two processes do not mix
    return message


def read_cell(folder: pathlib.Path, config: Config) -> CellRow:
    """Returns what the tables need of one run, most of it a list by iteration.

    A run that failed keeps its last values to the end. Where nothing but theta_t is
    evaluated (theta_0), what is shipped has the values of theta_t.
    """
    rows = iteration_rows(folder)
    done = len(rows) - 1
    padded = [*rows, *[rows[-1]] * (config.iterations - done)]
    files = {"": "evaluation"}
    if config.ship != "last":
        files["ship/"] = "evaluation-ship" if done else "evaluation"
    found: CellRow = {}
    for prefix, file in files.items():
        for name in KEPT if prefix else (*KEPT, *OF_POLICY):
            values = [row.get(prefix + name, row.get(name)) for row in padded]
            if values[-1] is not None:
                found[prefix + name] = [x if x is None else _round(x) for x in values]
        if config.offline:
            continue
        answers = read_records(folder / f"iterations/{done:03d}/{file}.jsonl", Rollout)
        texts = [row.prompt for row in answers], [row.responses for row in answers]
        found[f"{prefix}vader"] = _round(np.mean(sentiment(*texts)))
    if config.offline:
        kept = [unflipped_accuracy(folder, min(t, done)) for t in range(1, len(padded))]
        found["heldout/unflipped"] = [None, *map(_round, kept)]
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
    if config.reference.rule == "previous" and not config.offline:
        accuracies = pooled_accuracies(folder)
        found["stopped_at"] = stopping_place(accuracies)
        found["accuracies"] = [
            [_round(np.mean(of[k])) for k in sorted(of)] for of in accuracies
        ]
    return found


def unflipped_accuracy(folder: pathlib.Path, t: int) -> float:
    """Returns theta_t's accuracy on its own hold-out, its labels not flipped.

    Against theta_0; of a tie, half.
    """
    folder = folder / f"iterations/{t:03d}"
    pairs = [json.loads(x) for x in (folder / "pairs.jsonl").read_text().splitlines()]
    flipped_P = np.array([pair["flipped"] for pair in pairs if pair["held_out"]])
    with np.load(folder / "held_out.npz") as arrays:
        ratio_PN = arrays["policy_MN"].astype(float) - arrays["theta_0_MN"]
    lead_P = (ratio_PN @ [1.0, -1.0]) * np.where(flipped_P, -1, 1)
    return float(np.mean((np.sign(lead_P) + 1) / 2))


def _round(value: float) -> float:
    return float(f"{value:.5g}")
