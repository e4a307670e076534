"""A reward run's workdir as tpmm train_reward leaves it, without training one."""

import dataclasses
import io
import pathlib
import sys

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent / "loop"))

import tiny_run

from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.theta_0 import store_first
from tpmm_jax.models import Decoder, LoraConfig
from tpmm_jax.store import Trajectory
from tpmm_jax.store.files import write_json
from tpmm_jax.weights.loading import start_reward

LORA = LoraConfig(rank=2, alpha=6.0)
SETS = {
    "heldout": {
        "pairs": 200, "accuracy": 0.7, "accuracy/low": 0.62, "accuracy/high": 0.77,
        "loss": 0.61, "ece": 0.04,
    },
    "amazon": {
        "pairs": 150, "accuracy": 0.58, "accuracy/low": 0.49, "accuracy/high": 0.66,
        "loss": 0.69, "ece": 0.09,
    },
}  # fmt: skip


def make(workdir: pathlib.Path, *, lora: bool) -> pathlib.Path:
    """Two kept models, from the causal model beside the workdir."""
    base = workdir.parent / "base"
    if not base.exists():
        tiny_run.build_model(base)
    console = RunConsole(io.StringIO())
    source = start_reward(base, seed=5)
    decoder = Decoder(source.config, lora=LORA if lora else None)
    with Trajectory(
        workdir / "reward", storage="lora" if lora else "float32", lora=decoder.lora
    ) as trajectory:
        store_first(source, decoder, trajectory, 5, workdir, console)
        target = decoder.abstract_trained()
        read = trajectory.restore_adapters if lora else trajectory.restore
        rng = np.random.default_rng(0)
        moved = jax.tree.map(
            lambda x: x + 0.05 * rng.standard_normal(x.shape).astype(np.float32),
            read(0, target),
        )
        trajectory.append(1, moved, {"iteration": 1, "step": 40})
    config = {
        "seed": 5,
        "model": {"source": str(base)},
        "data": {"pairs": "pairs.jsonl"},
        "loss": {"use_margins": True, "center_rewards_coefficient": 0.01},
    }
    if lora:
        config["model"]["lora"] = dataclasses.asdict(LORA)
    write_json(workdir / "config.json", config)
    write_json(workdir / "data.json", {"pairs": "b" * 64})
    summary = {
        "kept": 1, "step": 40, "steps": 60, "temperature": 1.25, "beats_chance": True,
        "sets": SETS,
    }  # fmt: skip
    (workdir / "iterations" / "001").mkdir(parents=True)
    write_json(workdir / "iterations" / "001" / "summary.json", summary)
    return workdir
