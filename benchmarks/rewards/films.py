"""A reward model from human ratings of film snippets, tested on products and news too.

    # N is 512 of movie and 2 of the others.
    for name in movie amazon nyt; do
      python benchmarks/rewards/split_ratings.py --ratings ${name}_snippets.txt \\
          --out $TPMM_RATINGS/$name --prompts N --test 3000
    done
    tpmm train_reward --config benchmarks/rewards/films.py --set seed=0 --workdir DIR

The snippets are those of Hutto and Gilbert (2014), with mean ratings from -4 to 4.
Texts that train, that are held out and that test are disjoint; a text is in at most
three pairs, which one interval counts together. TPMM_RATINGS is the folder of the
splits, TPMM_ASSETS holds models/stories260k (docs/models.md). The results stand in
docs/rewards.md.
"""

import os
import pathlib

from tpmm_jax.config import ModelSource, RewardConfig, RewardEvaluationConfig
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.steps import TrainConfig


def get_config() -> RewardConfig:
    """Returns the configuration."""
    assets = pathlib.Path(os.environ["TPMM_ASSETS"])
    ratings = pathlib.Path(os.environ["TPMM_RATINGS"])
    sets = ("movie", "amazon", "nyt")
    return RewardConfig(
        model=ModelSource(source=str(assets / "models" / "stories260k"), remat=False),
        # All pairs are padded to the longest: 96 tokens leave out a fifth of them.
        data=RewardDataConfig(
            ratings=str(ratings / "movie" / "train.jsonl"), max_length=96
        ),
        train=TrainConfig(learning_rate=1e-3, batch_size=32),
        evaluation=RewardEvaluationConfig(
            every=200,
            sets={name: str(ratings / name / "test.jsonl") for name in sets},
        ),
    )
