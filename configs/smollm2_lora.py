"""SmolLM2-135M-Instruct learns the task of smollm2.py through low-rank adapters.

    tpmm train --config configs/smollm2_lora.py --workdir runs/smollm2-lora

Rank 16 on every linear layer: 4.9 M trained parameters instead of 134.5 M, and a
trajectory of adapters alone. Model, prompts and labels are those of smollm2.py.
Small enough for two CPU cores, where it was measured: docs/results.md.
"""

import dataclasses

from smollm2 import get_config as whole_model

from tpmm_jax.config import Config, EvaluationConfig, RolloutConfig
from tpmm_jax.models import LoraConfig
from tpmm_jax.steps import TrainConfig


def get_config() -> Config:
    """Returns the configuration."""
    config = whole_model()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, lora=LoraConfig(rank=16, dropout=0.05)),
        rollout=RolloutConfig(
            prompts_per_iteration=32,
            samples_per_prompt=4,
            max_new_tokens=24,
            batch_size=16,
        ),
        # Ten times the learning rate of full training is usual.
        train=TrainConfig(learning_rate=5e-4, batch_size=8, epochs=2),
        evaluation=EvaluationConfig(num_prompts=64),
    )
