"""Policies of the study of references on beginnings that they were not trained on.

Those of configs/stories260k.py's ``elsewhere``: another kind of story, out of the
training's domain. By tpmm evaluate: theta_0, the last policy and the mean of all, one
answer a prompt, the same prompts and keys for every cell of a seed.
"""

import contextlib
import io
import json
import os
import pathlib
import sys
from typing import Any

from grid import SEED, Cell

from tpmm_jax.commands import evaluate
from tpmm_jax.errors import Stopped

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# As the lines of other phases name a measure -> as tpmm evaluate does.
KEPT = {
    "reward/mean": "reward/mean",
    "kl/theta_0": "kl/baseline",
    "length/mean": "length/mean",
    "length/cut": "length/cut",
}


def evaluate_and_keep(
    cell: Cell, workdir: pathlib.Path, last: int, file: pathlib.Path
) -> str | None:
    """Appends the line of one cell that ran; returns what went wrong, or None.

    Args:
      last: the iteration whose policies are evaluated.
    """
    if str(CONFIGS) not in sys.path:
        sys.path.append(str(CONFIGS))
    folder = workdir / "cells" / cell.name
    names = [f"{folder}/{x}" for x in ("trajectory@0", f"trajectory@{last}")]
    words = [
        *names, f"{folder}/policy@mean..{last}", "--prompts", "stories260k:elsewhere",
        "--scorer", "stories260k:score", "--seed", cell.levels[SEED], "--batch-size",
        "64", "--max-new-tokens", "48", "--json",
    ]  # fmt: skip
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = evaluate.main(words)
    if code == Stopped.exit_code:
        os._exit(code)  # this process takes no further cell
    if code:
        return f"tpmm evaluate ended with {code}: {errors.getvalue().strip()}"
    first, *others = json.loads(out.getvalue())["models"]
    row: dict[str, Any] = {"phase": "elsewhere", "cell": cell.name, **cell.levels}
    row |= {"rate": float(cell.levels["rate"]), "failed": ""}
    for prefix, policy in zip(("", "ship/"), others, strict=True):
        for name, theirs in KEPT.items():
            row[prefix + name] = [float(f"{x[theirs]:.5g}") for x in (first, policy)]
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")  # one write: two processes do not mix
    return None
