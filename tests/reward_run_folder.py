"""A reward run's workdir as tpmm train_reward leaves it, without training one."""

import dataclasses
import pathlib
import sys

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent / "loop"))

import tiny_run

from tpmm_jax.loop.theta_0 import base_record
from tpmm_jax.models import Decoder, LoraConfig
from tpmm_jax.models.lora import init_adapters
from tpmm_jax.store import Base, Trajectory
from tpmm_jax.store.files import write_json
from tpmm_jax.weights.description import write_description
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
    source = start_reward(base, seed=5)
    decoder = Decoder(source.config, lora=LORA if lora else None)
    params = source.read(decoder, "float32")
    origin = {"iteration": 0, **source.origin}
    (workdir / "model").mkdir(parents=True)
    write_description(source.config, source.tokenizer, "float32", workdir / "model")
    start, storage = params, "float32"
    if lora:
        key, storage = jax.random.key(0), "lora"
        start = init_adapters(
            decoder.abstract_params(), LORA, key, score=params["score"]
        )
        origin["base"] = base_record(workdir, source.origin)
    rng = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda x: x + 0.05 * rng.standard_normal(x.shape).astype(np.float32), start
    )
    with Trajectory(
        workdir / "reward",
        storage=storage,
        lora=decoder.lora,
        base=Base(lambda: source.read(decoder, "float32"), "base", ""),
    ) as trajectory:
        trajectory.append(0, start, origin)
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
