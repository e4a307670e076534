"""Two iterations of DPO against one reward model; gold watches. See README.md.

scorer.name is set by study.py. The policy is stories260k, which continues the first six
words of film snippets that trained no reward model and fitted no judge.
"""

import json
import os
import pathlib
import sys

from tpmm_jax.config import Config, EvaluationConfig, ModelSource, RolloutConfig
from tpmm_jax.data.config import DataConfig
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.rewards import PairingConfig, ScorerConfig
from tpmm_jax.steps import TrainConfig

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "configs"))
import stories260k

# The pool of best of n and the evaluations of DPO have the same prompts.
EVALUATED, NEW_TOKENS = 128, 32


def prompts() -> list[str]:
    """Returns the beginnings of film snippets."""
    path = pathlib.Path(os.environ["TPMM_RATINGS"]) / "movie" / "prompts.jsonl"
    return [json.loads(line)["prompt"] for line in path.open(encoding="utf-8")]


def evaluated() -> list[str]:
    """Returns those that no policy is trained on."""
    return prompts()[:EVALUATED]


def training() -> list[str]:
    """Returns the others."""
    return prompts()[EVALUATED:]


def get_config() -> Config:
    """Returns the configuration."""
    return Config(
        iterations=2,
        model=ModelSource(source=stories260k.model_directory(), remat=False),
        data=DataConfig(prompts="umm_loop:training", eval_prompts="umm_loop:evaluated"),
        rollout=RolloutConfig(
            prompts_per_iteration=184,
            samples_per_prompt=8,
            max_new_tokens=NEW_TOKENS,
            batch_size=64,
        ),
        scorer=ScorerConfig(name="reward:RUN"),
        pairing=PairingConfig(holdout_fraction=0.1),
        reference=ReferenceConfig(rule="sft"),
        train=TrainConfig(
            learning_rate=4e-4,
            schedule="constant",
            warmup_fraction=0.0,
            batch_size=32,
            epochs=4,
        ),
        evaluation=EvaluationConfig(
            num_prompts=EVALUATED, scorers={"gold": "umm_gold:score"}
        ),
    )
