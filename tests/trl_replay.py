"""TRL's twenty training steps through our train step; for tests and benchmarks."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.losses import LossConfig
from tpmm_jax.models import Decoder
from tpmm_jax.steps import (
    TrainConfig,
    init_state,
    make_learning_rate,
    pair_log_probs_step,
    preference_step,
)
from tpmm_jax.weights.hf_config import parse_config
from tpmm_jax.weights.huggingface import SafetensorsDirectory, read_params

FOLDER = pathlib.Path(__file__).parent / "fixtures" / "trl_dpo"
TOLERANCE = {
    "loss": 1e-5,
    "grad_norm": 5e-4,
    "rewards/chosen": 5e-5,
    "rewards/rejected": 5e-5,
    "rewards/margins": 5e-5,
    "rewards/accuracies": 0.0,
    "logps/chosen": 5e-4,
    "logps/rejected": 5e-4,
}
# TRL's run: our loss, weight decay, micro-batches. Ours are all of precomputed
# reference log-probs.
RUNS = {
    "f32": (LossConfig(), 0.0, 2),
    "f32_precomputed": (LossConfig(), 0.0, 2),
    "f32_wd": (LossConfig(), 0.1, 1),
    "f32_hinge": (LossConfig(name="hinge"), 0.0, 1),
    "f32_ipo": (LossConfig(name="ipo"), 0.0, 1),
    "f32_sigmoid_sft": (
        LossConfig(name=["dpo", "sft"], weights=[1.0, 0.5]),
        0.0,
        2,
    ),
}


@functools.cache
def load():
    """Decoder, initial parameters (NumPy), batches with reference_BN, expectations."""
    hf = json.loads((FOLDER / "model" / "config.json").read_text())
    decoder = Decoder(parse_config(hf, "config.json"), chunk_bytes=1 << 18)
    params = read_params(SafetensorsDirectory(FOLDER / "model"), decoder, "float32")
    arrays = np.load(FOLDER / "batches.npz")

    def pairs(rows):
        return jnp.asarray(np.stack([rows[:8], rows[8:]], axis=1), jnp.int32)

    batches = []
    for i in range(20):
        batch = {
            "tokens_BNT": pairs(arrays["input_ids"][i]),
            "mask_BNT": pairs(arrays["attention_mask"][i]),
            "completion_mask_BNT": pairs(arrays["completion_mask"][i]),
            "weight_B": jnp.ones(8, jnp.float32),
        }
        reference_BN = pair_log_probs_step(decoder, params, batch)
        batches.append({**batch, "reference_BN": reference_BN})
    expected = json.loads((FOLDER / "expected.json").read_text())
    return decoder, jax.device_get(params), batches, expected


@functools.cache
def replay(run):
    """Returns the state after TRL's run, and its metrics a step as floats."""
    decoder, params, batches, _ = load()
    loss, weight_decay, accumulation = RUNS[run]
    config = TrainConfig(
        learning_rate=5e-4,
        schedule="constant",
        warmup_fraction=0.0,
        batch_size=8,
        weight_decay=weight_decay,
        accumulation=accumulation,
    )
    state = init_state(jax.tree.map(jnp.array, params), config)
    step = preference_step(decoder, loss, config)
    rate = make_learning_rate(config, 20)
    found = []
    for i, batch in enumerate(batches):
        state, metrics = step(state, batch, rate(i))
        found.append({name: float(metrics[name]) for name in TOLERANCE})
    return state, found


def errors(run):
    """Largest error of each quantity over the steps, over max(1, |value|).

    Log-probs are not divided: 5e-4 nats is their bar.
    """
    wanted, largest = load()[3]["runs"][run]["steps"], dict.fromkeys(TOLERANCE, 0.0)
    for i, found in enumerate(replay(run)[1]):
        for name in TOLERANCE:
            # At step 0 policy = reference: rounding decides which answer wins.
            if i == 0 and name == "rewards/accuracies":
                continue
            theirs = wanted[i][name]
            scale = 1.0 if name.startswith("logps") else max(1.0, abs(theirs))
            largest[name] = max(largest[name], abs(found[name] - theirs) / scale)
    return largest
