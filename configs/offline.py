"""DPO on a preference file of your own, without sampling or a scorer.

    tpmm check_data pairs.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct
    tpmm train --config configs/offline.py --set data.pairs=pairs.jsonl

Rows hold chosen and rejected, with or without a prompt: docs/data.md. For rows of
messages add --set data.chat=true. Each iteration trains on its own part of the file
against the previous policy (reference.rule); a quarter of the prompts is held out, and
heldout/accuracy is what to watch. With --set data.eval_prompts=prompts.jsonl policies
answer prompts too: lengths, KL, diversity, samples. The model is as in
configs/smollm2.py; small enough for two CPU cores (minutes for a few hundred pairs), or
any GPU.
"""

from tpmm_jax.config import Config, ModelSource
from tpmm_jax.data.config import DataConfig
from tpmm_jax.rewards import PairingConfig
from tpmm_jax.steps import TrainConfig


def get_config() -> Config:
    """Returns the configuration."""
    return Config(
        iterations=2,
        model=ModelSource(source="HuggingFaceTB/SmolLM2-135M-Instruct"),
        data=DataConfig(
            pairs="pairs.jsonl", max_prompt_length=512, max_completion_length=256
        ),
        pairing=PairingConfig(holdout_fraction=0.25),
        train=TrainConfig(learning_rate=2e-5, batch_size=8, epochs=1),
    )
