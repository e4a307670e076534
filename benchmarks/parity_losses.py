"""Prints how far our losses and our training are from TRL's.

  python benchmarks/parity_losses.py

Reads tests/fixtures/dpo_losses.json and tests/fixtures/trl_dpo, which TRL made; runs on
the CPU in a minute or two. Its output is in docs/parity.md.
"""

import os
import pathlib
import platform
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
TESTS = pathlib.Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "losses"), str(TESTS.parent)]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jaxlib  # noqa: E402
import numpy as np  # noqa: E402
import trl_cases  # noqa: E402
import trl_replay  # noqa: E402

from tpmm_jax.losses import pair_metrics  # noqa: E402

QUANTITIES = {
    "loss": ("loss",),
    "grad_norm": ("grad_norm",),
    "rewards": ("rewards/chosen", "rewards/rejected", "rewards/margins"),
    "accuracies": ("rewards/accuracies",),
    "log-probs": ("logps/chosen", "logps/rejected"),
}


def loss_errors() -> dict[str, dict[str, float]]:
    """Loss -> column -> largest error over its cases, over max(1, |value|)."""
    inputs, cases = trl_cases.load()
    table: dict[str, dict[str, float]] = {}
    for case in cases:
        config = trl_cases.ours(case)
        row = table.setdefault(config.title, {"cases": 0})
        row["cases"] += 1
        found = {}
        for dtype, wanted in (("float64", case["loss_f64"]), ("float32", case["loss"])):
            if wanted is None:
                continue
            with jax.enable_x64(dtype == "float64"):
                loss, grad, logps, _ = trl_cases.evaluate(inputs, case, dtype)
            found[f"value, {dtype}"] = abs(float(loss) - wanted) / max(1, abs(wanted))
            if (error := trl_cases.gradient_error(inputs, case, grad)) is not None:
                found[f"gradient, {dtype}"] = error[0] / max(1, error[1])
        if case["metrics"]:
            metrics = pair_metrics(logps, config.objective())
            found["metrics, float32"] = max(
                abs(float(jnp.mean(metrics[k])) - v) / max(1, abs(v))
                for k, v in case["metrics"].items()
            )
        for column, error in found.items():
            row[column] = max(row.get(column, 0.0), float(error))
    return table


def print_table(headings: list[str], rows: list[list[str]]) -> None:
    """Prints a Markdown table."""
    print("| " + " | ".join(headings) + " |")
    print("|" + "---|" * len(headings))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def main() -> None:
    """Prints both tables and the versions."""
    columns = [
        "value, float64", "gradient, float64", "value, float32", "gradient, float32",
        "metrics, float32",
    ]  # fmt: skip
    bars = ["1e-06", "1e-06", "1e-05", "1e-05", "1e-05"]
    rows = [
        [name, str(row["cases"])]
        + [f"{row[c]:.1e}" if c in row else "–" for c in columns]
        for name, row in loss_errors().items()
    ]
    print_table(["loss", "cases", *columns], [*rows, ["bar", "", *bars]])
    print()
    rows = []
    for run in trl_replay.RUNS:
        errors = trl_replay.errors(run)
        largest = [max(errors[n] for n in names) for names in QUANTITIES.values()]
        rows.append([run, *(f"{x:.1e}" for x in largest)])
    bars = [f"{trl_replay.TOLERANCE[names[0]]:.0e}" for names in QUANTITIES.values()]
    print_table(["TRL's run", *QUANTITIES], [*rows, ["bar", *bars]])
    print()
    theirs = trl_replay.load()[3]["versions"]
    print(
        f"Ours: Python {platform.python_version()}, jax {jax.__version__}, jaxlib "
        f"{jaxlib.__version__}, NumPy {np.__version__}, {jax.default_backend()}. "
        f"Theirs: TRL {theirs['trl']}, torch {theirs['torch']}, transformers "
        f"{theirs['transformers']}."
    )


if __name__ == "__main__":
    main()
