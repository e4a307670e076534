"""Gemma 2B on the controlled-sentiment task: IMDb openings, VADER labels.

    python -m tpmm_jax.train --config configs/gemma2b.py --workdir runs/gemma2b

The task is that of the DPO paper (2305.18290, section 6) with an open scorer: the
first 32 tokens of a review are continued by 64. Weights, gradients and Adam moments
are float32 (40 GB in all), activations bfloat16.

Hardware: one machine with 8 GPUs of 80 GB (mesh GPU_NODE). TPU_POD is the mesh for a
pod slice such as v5e-64 (launch/tpu_pod.sh). Shapes are checked by eval_shape on 8
virtual devices (tests/test_configs.py). We have not run it at full size: there is no
result yet.
"""

from tpmm_jax.config import Config, EvaluationConfig, ModelSource, RolloutConfig
from tpmm_jax.data.config import DataConfig
from tpmm_jax.mesh import MeshConfig
from tpmm_jax.rewards import ScorerConfig
from tpmm_jax.steps import TrainConfig

# Weights split 8 ways; Gemma 2B has one key/value head, so a tensor axis would
# only replicate it.
GPU_NODE = MeshConfig(data=1, fsdp=8, tensor=1)
# Weights split 16 ways, the rest of the pod in data parallel.
TPU_POD = MeshConfig(data=-1, fsdp=16, tensor=1)


def get_config(mesh: MeshConfig = GPU_NODE) -> Config:
    """Returns the configuration; TPU_POD is --set mesh.data=-1 --set mesh.fsdp=16."""
    return Config(
        iterations=4,
        model=ModelSource(
            source="google/gemma-2b",
            compute_dtype="bfloat16",
            logits_chunk_mib=512,
        ),
        mesh=mesh,
        data=DataConfig(
            prompts="stanfordnlp/imdb",
            prompt_field="text",
            max_prompt_length=32,
            truncate_prompt="right",
        ),
        rollout=RolloutConfig(
            prompts_per_iteration=4096,
            samples_per_prompt=4,
            max_new_tokens=64,
            batch_size=256,
        ),
        scorer=ScorerConfig(name="tpmm_jax.rewards.vader:sentiment"),
        train=TrainConfig(learning_rate=5e-7, batch_size=64, accumulation=1, epochs=1),
        evaluation=EvaluationConfig(num_prompts=512),
    )
