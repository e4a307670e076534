"""Folders of runs, written by hand, with every part that a report shows."""

import json
import pathlib

import numpy as np

HOSTILE = "<script>alert('x')</script> & $x_{ </div>"
WATCH = "iteration {t}: the reward rises while judge careful falls; read its samples"


def write_lines(path: pathlib.Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def measured(rng: np.random.Generator, t: int, prefix: str = "") -> dict:
    def around(name: str, mean: float, half: float) -> dict:
        stem = name.removesuffix("mean") if name.endswith("/mean") else f"{name}/"
        return {
            f"{prefix}{name}": mean,
            f"{prefix}{stem}low": mean - half,
            f"{prefix}{stem}high": mean + half,
        }

    found = around("reward/mean", 0.4 + 0.11 * t + 0.02 * rng.random(), 0.05)
    found |= around("score/fluent/mean", -1.5 - 0.1 * t, 0.1)
    found |= around("kl/theta_0", 1.4 * t, 0.1 * t)
    found |= {
        f"{prefix}length/mean": 40 + 5.0 * t,
        f"{prefix}distinct/1": 0.3 - 0.02 * t,
        f"{prefix}distinct/2": 0.7 - 0.03 * t,
    }
    if t > 0:
        found[f"{prefix}kl/reference"] = 0.9
        for judge in ("", "score/fluent/", "judge/careful/"):
            win = 0.5 + (-0.05 if "careful" in judge else 0.08) * t
            found |= around(f"{judge}win/theta_0", win, 0.06)
            found |= around(f"{judge}win/previous", 0.53, 0.07)
    return found


def iteration_row(rng: np.random.Generator, t: int) -> dict:
    row = {"kind": "iteration", "iteration": t, **measured(rng, t)}
    row |= measured(rng, t, "film/")
    if t > 0:
        weights = rng.dirichlet(np.ones(t))
        row |= {f"merge/weight_{k}": float(w) for k, w in enumerate(weights)}
        row |= {"merge/rule": "learned", "merge/signal_to_rounding": 1200.0 * t}
        row |= {"heldout/accuracy": 0.62, "heldout/margin": 1.5, "loss": 0.6}
        row |= {"heldout/accuracy/low": 0.55, "heldout/accuracy/high": 0.69}
        row |= {"rewards/margins": 0.3, "rewards/accuracies": 0.7, "pairs": 48}
    if t > 1:
        row["watch"] = [WATCH.format(t=t)]
    return row


def train_rows(rng: np.random.Generator, t: int, steps: int) -> list[dict]:
    return [
        {
            "kind": "train",
            "iteration": t,
            "step": step,
            "loss": 0.69 * 0.98**step + 0.02 * float(rng.random()),
            "rewards/margins": 0.02 * step,
            "rewards/accuracies": float(min(1.0, 0.5 + 0.01 * step)),
        }
        for step in range(steps)
    ]


def sample_rows(rng: np.random.Generator, t: int, prompts: int) -> list[dict]:
    return [
        {
            "prompt": f"Once upon a time {i}",
            "responses": [f"there was answer {i} of policy {t}", HOSTILE],
            "rewards": (0.1 * t + rng.normal(0, 0.2, 2)).tolist(),
            "held_out": True,
            "prompt_ids": [1, i],
            "response_ids": [[5, 2], [6]],
        }
        for i in range(prompts)
    ]


def write_run(
    folder: pathlib.Path,
    *,
    iterations: int = 3,
    steps: int = 12,
    prompts: int = 9,
    rule: str = "learned",
    seed: int = 0,
) -> pathlib.Path:
    """A finished run with everything the agreed formats have."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows, timing = [], []
    for t in range(iterations + 1):
        if t > 0:
            rows += train_rows(rng, t, steps)
        rows.append(iteration_row(rng, t))
        kinds = ["evaluation", *(["train", "iteration"] if t else [])]
        timing += [
            {"kind": k, "iteration": t, "time": 1.7e9, "seconds": 9.0 + 20 * i}
            for i, k in enumerate(kinds)
        ]
        place = folder / "iterations" / f"{t:03d}"
        write_lines(place / "evaluation.jsonl", sample_rows(rng, t, prompts))
        write_lines(place / "evaluation-film.jsonl", sample_rows(rng, t, 4))
        if t > 0:
            write_iteration(place, rng, t)
    write_lines(folder / "metrics.jsonl", rows)
    write_lines(folder / "timing.jsonl", timing)
    write_lines(folder / "sessions.jsonl", session_rows())
    (folder / "config.json").write_text(json.dumps(config(iterations, rule)))
    return folder


def write_iteration(place: pathlib.Path, rng: np.random.Generator, t: int) -> None:
    groups = ["layer 0", "layer 1", "layer 2", "embed", "final_norm"]
    weights = rng.dirichlet(np.ones(t), size=len(groups)).tolist()
    record = {"rule": "learned", "groups": groups, "weights": weights}
    (place / "reference.json").write_text(json.dumps(record))
    start = rng.normal(-60, 5, (40, 2))
    arrays = {"theta_0_MN": start, "reference_MN": start + 1}
    arrays["policy_MN"] = start + rng.normal([2, -3], 3, (40, 2))
    np.savez(
        place / "held_out.npz", **{k: v.astype(np.float32) for k, v in arrays.items()}
    )


def session_rows() -> list[dict]:
    first = {
        "time": 1.7e9,
        "command": "python -m tpmm_jax.train --config configs/x.py",
        "resumed": False,
        "next_iteration": 1,
        "versions": {"python": "3.11.9", "jax": "0.10.2"},
        "devices": "1 x cpu",
    }
    return [
        first,
        first
        | {"resumed": True, "next_iteration": 2, "time": 1.7e9 + 4000}
        | {"versions": {"python": "3.11.9", "jax": "0.11.0"}},
    ]


def config(iterations: int, rule: str) -> dict:
    return {
        "iterations": iterations,
        "seed": 0,
        "model": {"source": "models/small", "compute_dtype": "float32"},
        "data": {"prompts": "prompts.jsonl", "chat": False},
        "scorer": {"name": "my_scorer:score", "options": {}},
        "pairing": {"flip_probability": 0.3, "holdout_fraction": 0.25},
        "reference": {
            "rule": rule,
            "granularity": "layer",
            "objective": "calibrated",
        },
        "loss": {"name": "dpo", "beta": 0.25},
        "train": {"learning_rate": 1e-4, "batch_size": 32, "epochs": 2},
        "evaluation": {
            "num_prompts": 9,
            "samples_per_prompt": 2,
            "max_kl_per_token": 0.5,
        },
    }
