"""Two iterations that a reward model of film ratings labels and VADER judges.

    tpmm train --config benchmarks/rewards/films_loop.py --workdir DIR \\
        --set scorer.name=reward:RUN

RUN is a workdir of films.py. SmolLM2-135M-Instruct continues the first words of film
snippets that neither train nor test the reward model; VADER, which has seen no rating,
is what the watch compares it with. Result: docs/results.md. Needs the demo extra.
"""

import os
import pathlib
import sys

from tpmm_jax.config import Config, EvaluationConfig, ModelSource, RolloutConfig
from tpmm_jax.data.config import DataConfig
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.models import LoraConfig
from tpmm_jax.rewards import PairingConfig, ScorerConfig
from tpmm_jax.steps import TrainConfig

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "configs"))
from smollm2 import model_source


def get_config() -> Config:
    """Returns the configuration; scorer.name is set on the command line."""
    prompts = pathlib.Path(os.environ["TPMM_RATINGS"]) / "movie" / "prompts.jsonl"
    return Config(
        iterations=2,
        model=ModelSource(
            source=model_source(), remat=False, lora=LoraConfig(rank=16, dropout=0.05)
        ),
        data=DataConfig(prompts=str(prompts), max_prompt_length=32),
        rollout=RolloutConfig(
            prompts_per_iteration=184,
            samples_per_prompt=4,
            max_new_tokens=24,
            batch_size=32,
        ),
        scorer=ScorerConfig(name="reward:RUN"),
        pairing=PairingConfig(holdout_fraction=0.1),
        reference=ReferenceConfig(rule="learned", fit="adam", steps=10, batch_size=8),
        train=TrainConfig(learning_rate=5e-4, batch_size=8, epochs=3),
        evaluation=EvaluationConfig(
            num_prompts=128, scorers={"vader": "tpmm_jax.rewards.vader:sentiment"}
        ),
    )
