"""A config that is planned and never run."""

from tpmm_jax.config import Config, EvaluationConfig, ModelSource, RolloutConfig
from tpmm_jax.data.config import DataConfig
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.mesh import MeshConfig
from tpmm_jax.rewards import ScorerConfig
from tpmm_jax.steps import TrainConfig


def get_config() -> Config:
    return Config(
        iterations=4,
        model=ModelSource(source="org/gated", compute_dtype="bfloat16"),
        mesh=MeshConfig(data=1, fsdp=-1),
        data=DataConfig(prompts="org/prompts", max_prompt_length=16),
        rollout=RolloutConfig(
            prompts_per_iteration=64, max_new_tokens=16, batch_size=16
        ),
        scorer=ScorerConfig(name="module:function"),
        reference=ReferenceConfig(rule="learned", fit="exact"),
        train=TrainConfig(learning_rate=1e-6, batch_size=32),
        evaluation=EvaluationConfig(num_prompts=16),
    )
