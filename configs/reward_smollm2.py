"""A reward model from SmolLM2-135M-Instruct and a file of preference pairs, with LoRA.

    tpmm train_reward --config configs/reward_smollm2.py --workdir runs/rm2 \\
        --set data.pairs=my_pairs.jsonl

Rank 16 on all linear layers, the head trained whole; conversations are written with the
model's chat template. A model kept at an improvement takes 20 MB. Not measured yet:
neither its time nor its accuracy, which depend on the pairs.
"""

from tpmm_jax.config import ModelSource, RewardConfig, RewardEvaluationConfig
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.models import LoraConfig
from tpmm_jax.steps import TrainConfig


def get_config() -> RewardConfig:
    """Returns the configuration."""
    return RewardConfig(
        model=ModelSource(
            source="HuggingFaceTB/SmolLM2-135M-Instruct", lora=LoraConfig(rank=16)
        ),
        data=RewardDataConfig(pairs="pairs.jsonl", chat=True, max_length=512),
        train=TrainConfig(learning_rate=1e-4, batch_size=32, accumulation=8),
        evaluation=RewardEvaluationConfig(every=50, patience=4),
    )
