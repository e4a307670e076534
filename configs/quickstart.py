"""Two references side by side on a made-up language, in minutes and with no download.

python configs/quickstart.py
"""

from tpmm_jax.config import Config, EvaluationConfig, ModelSource, RolloutConfig
from tpmm_jax.data.config import DataConfig
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.rewards import PairingConfig, ScorerConfig
from tpmm_jax.steps import TrainConfig


def get_config() -> Config:
    """Returns the configuration."""
    return Config(
        iterations=4,
        model=ModelSource(source="tpmm_jax.demo.toy:build_model"),
        data=DataConfig(prompts="tpmm_jax.demo.toy:prompts", max_prompt_length=9),
        rollout=RolloutConfig(
            prompts_per_iteration=320,
            samples_per_prompt=4,
            max_new_tokens=23,
            batch_size=64,
        ),
        scorer=ScorerConfig(name="tpmm_jax.demo.toy:reward"),
        pairing=PairingConfig(flip_probability=0.25),
        reference=ReferenceConfig(rule="learned", steps=40, batch_size=64),
        train=TrainConfig(batch_size=16, learning_rate=1e-3, epochs=3),
        # As many samples a prompt as a rollout has: one compiled sampler serves both.
        evaluation=EvaluationConfig(num_prompts=64, samples_per_prompt=4),
    )
