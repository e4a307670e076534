"""A reward model for cheerful stories, from a pretrained model of 260,032 parameters.

    export TPMM_ASSETS=/path/to/assets     # see docs/models.md
    tpmm train_reward --config configs/reward_stories260k.py --workdir runs/rm

The pairs are made here: 300 beginnings, each with four endings of three sentences; the
one that VADER finds most cheerful is chosen against the three others. The test set
"elsewhere" has other beginnings and other sentences, which the model cannot have
learned by heart. Needs the demo extra (VADER). Two CPU cores that were shared took 2 to
4 minutes. Measured with this seed: 93 % [87, 96] of 179 held-out pairs, 81 % [69, 89]
of the choices of four, 65 % [58, 71] of 295 pairs elsewhere, temperature 1.15.
"""

import os
import pathlib
from typing import Any

import numpy as np

from tpmm_jax.config import ModelSource, RewardConfig, RewardEvaluationConfig
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.rewards.vader import sentiment
from tpmm_jax.steps import TrainConfig

WHO = ("Lily", "Tom", "Ben", "Mia", "Sam", "Anna", "Max", "Lucy", "Tim", "Sue")
WHERE = (
    *("the park", "the garden", "school", "the beach", "the farm", "the forest"),
    *("the shop", "the river", "the zoo", "a friend"),
)
WHEN = ("One day", "In the morning", "After lunch")
WHEN_ELSEWHERE = ("At night",)
# For training and, behind them, for the test set.
SENTENCES = (
    "The sun was warm and everyone was happy.",
    "They played a fun game and laughed.",
    "A friend gave a nice gift.",
    "It was a great day.",
    "The dog was sweet and kind.",
    "Then it rained and everyone was sad.",
    "The toy broke and was lost.",
    "A big dog was mean and angry.",
    "It was a terrible day.",
    "There was a fight and someone cried.",
    "They saw a tree and a house.",
    "The bus was red.",
)
ELSEWHERE = (
    "They smiled and sang a lovely song.",
    "Mom made a good cake and they loved it.",
    "It was the best party.",
    "The bird was scared and hurt.",
    "The cold wind was horrible.",
    "He was sick and felt bad.",
    "The boat was on the water.",
    "She had a blue hat.",
)
ENDINGS = 4


def pairs() -> list[dict[str, Any]]:
    """Returns pairs about sentences that train."""
    return make_pairs(WHEN, SENTENCES, seed=0)


def elsewhere() -> list[dict[str, Any]]:
    """Returns pairs of other beginnings and sentences."""
    return make_pairs(WHEN_ELSEWHERE, ELSEWHERE, seed=1)


def make_pairs(
    when: tuple[str, ...], sentences: tuple[str, ...], seed: int
) -> list[dict[str, Any]]:
    """Returns for each beginning the best of its endings against the others."""
    rng = np.random.default_rng(seed)
    prompts = [f"{t}, {w} went to {p}." for t in when for w in WHO for p in WHERE]
    endings = [
        [
            " " + " ".join(rng.choice(sentences, 3, replace=False))
            for _ in range(ENDINGS)
        ]
        for _ in prompts
    ]
    rows = []
    for prompt, texts, scores in zip(prompts, endings, sentiment(prompts, endings)):
        best = int(np.argmax(scores))
        rows += [
            {
                "prompt": prompt,
                "chosen": texts[best],
                "rejected": text,
                "margin": float(scores[best] - score),
            }
            for text, score in zip(texts, scores)
            if score < scores[best]
        ]
    return rows


def model_directory() -> str:
    """Returns $TPMM_ASSETS/models/stories260k."""
    assets = os.environ.get("TPMM_ASSETS")
    path = pathlib.Path(assets or "") / "models" / "stories260k"
    if not assets or not path.is_dir():
        raise BadInput(
            f"TPMM_ASSETS is {assets!r} and {path} is not a directory; docs/models.md "
            "says where to get the model and how to lay it out"
        )
    return str(path)


def get_config() -> RewardConfig:
    """Returns the configuration."""
    return RewardConfig(
        model=ModelSource(source=model_directory(), remat=False),
        data=RewardDataConfig(pairs="reward_stories260k:pairs"),
        train=TrainConfig(learning_rate=1e-3, batch_size=16, epochs=2),
        evaluation=RewardEvaluationConfig(
            holdout_fraction=0.2,
            every=25,
            patience=3,
            sets={"elsewhere": "reward_stories260k:elsewhere"},
        ),
    )
