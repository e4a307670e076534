"""What the cells of the MADPO study have in common; see README.md.

The gold reward of a continuation is 6 (p - 0.5), p its share of VADER's scale.
"""

import functools
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from tpmm_jax.config import Config, EvaluationConfig, ModelSource, RolloutConfig
from tpmm_jax.data.config import DataConfig
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.rewards import PairingConfig, ScorerConfig
from tpmm_jax.rewards.vader import sentiment
from tpmm_jax.steps import TrainConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "configs"))
import stories260k  # noqa: E402

EVALUATED = 256


def gold(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns 6 (p - 0.5), p = (VADER's compound score + 1) / 2."""
    return 3.0 * sentiment(prompts, responses)


@functools.cache
def beginnings() -> list[str]:
    """Returns beginnings of stories as texts, all different."""
    tokenizer = stories260k.theta_0().tokenizer
    found = tokenizer.batch_decode(stories260k.prompts(), skip_special_tokens=True)
    return list(dict.fromkeys(found))


def held_out_prompts() -> list[str]:
    """Returns the prompts of the evaluation, which no pair has."""
    return beginnings()[:EVALUATED]


def pool() -> list[str]:
    """Returns the prompts that pairs are made of."""
    return beginnings()[EVALUATED:]


def get_config() -> Config:
    """Returns the configuration; a cell sets data.pairs, the loss and the rate."""
    return Config(
        iterations=1,
        model=ModelSource(source=stories260k.model_directory(), remat=False),
        data=DataConfig(
            pairs="pairs.jsonl", eval_prompts="madpo_study:held_out_prompts"
        ),
        rollout=RolloutConfig(
            max_new_tokens=stories260k.RESPONSE_TOKENS, batch_size=64
        ),
        scorer=ScorerConfig(name="madpo_study:gold"),
        pairing=PairingConfig(holdout_fraction=0.2),
        reference=ReferenceConfig(rule="sft"),
        train=TrainConfig(
            learning_rate=1e-4,
            schedule="constant",
            warmup_fraction=0.0,
            batch_size=32,
            epochs=2,
        ),
        evaluation=EvaluationConfig(num_prompts=EVALUATED),
    )
