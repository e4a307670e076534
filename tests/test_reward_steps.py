"""TRL's RewardTrainer replayed step by step, from the same head and batches."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.losses import RewardLossConfig
from tpmm_jax.models import Decoder
from tpmm_jax.steps import TrainConfig, init_state, pair_rewards_step, reward_step
from tpmm_jax.weights.loading import start_reward

RUNS = {
    "f32": (RewardLossConfig(), 0.0, 2),
    "f32_margin": (RewardLossConfig(use_margins=True), 0.0, 1),
    "f32_centred": (RewardLossConfig(center_rewards_coefficient=0.05), 0.0, 1),
    "f32_wd": (RewardLossConfig(), 0.1, 1),
}


@functools.cache
def load(fixtures):
    source = start_reward(fixtures / "trl_dpo" / "model", seed=0)
    decoder = Decoder(source.config)
    params = source.read(decoder, "float32")
    arrays = np.load(fixtures / "trl_reward" / "batches.npz")
    params["score"] = jnp.asarray(arrays["score_weight"].T)

    def pairs(rows):
        return jnp.asarray(np.stack([rows[:8], rows[8:]], axis=1), jnp.int32)

    batches = [
        {
            "tokens_BNT": pairs(tokens),
            "mask_BNT": pairs(mask),
            "margin_B": jnp.asarray(margin, jnp.float32),
            "weight_B": jnp.ones(8, jnp.float32),
        }
        for tokens, mask, margin in zip(
            arrays["input_ids"], arrays["attention_mask"], arrays["margins"]
        )
    ]
    expected = json.loads((fixtures / "trl_reward" / "expected.json").read_text())
    return decoder, params, batches, expected["runs"]


# Each compiles a step of its own.
SLOW = ("f32_centred", "f32_wd")


@pytest.mark.parametrize(
    "run",
    [pytest.param(r, marks=pytest.mark.slow if r in SLOW else ()) for r in RUNS],
)
def test_twenty_steps_are_trls(run, fixtures):
    decoder, params, batches, expected = load(fixtures)
    loss, decay, accumulation = RUNS[run]
    config = TrainConfig(
        learning_rate=5e-4,
        batch_size=8,
        accumulation=accumulation,
        schedule="constant",
        warmup_fraction=0.0,
        weight_decay=decay,
    )
    step = reward_step(decoder, loss, config)
    # A copy: a step takes its state over.
    state = init_state(jax.tree.map(jnp.copy, params), config)
    for batch, want in zip(batches, expected[run]["steps"]):
        rewards_BN = np.asarray(pair_rewards_step(decoder, state.params, batch))
        found = np.concatenate([rewards_BN[:, 0], rewards_BN[:, 1]])
        np.testing.assert_allclose(found, want["rewards"], atol=5e-4, rtol=0)
        state, metrics = step(state, batch, 5e-4)
        assert abs(float(metrics["loss"]) - want["loss"]) <= 1e-5
        assert float(metrics["grad_norm"]) == pytest.approx(want["grad_norm"], rel=5e-4)
        assert float(metrics["accuracy"]) == pytest.approx(want["accuracy"], abs=1e-6)
        for name in ("margin", "mean_reward"):
            assert float(metrics[name]) == pytest.approx(want[name], abs=5e-4)
    final = np.asarray(state.params["score"])[:, 0]
    np.testing.assert_allclose(final, expected[run]["final_score_weight"], atol=5e-4)
