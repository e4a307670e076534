"""Two references side by side on a small made-up language; nothing is downloaded.

    python configs/quickstart.py        (or: make quickstart)

pretrains a Gemma of 0.1 M parameters on reviews from a small grammar, then trains it
on preferences for four iterations, once against the previous policy and once against
the learned merge of all earlier policies. The true reward is known: the mean sentiment
of a review's sentences (tpmm_jax.demo.toy.reward). A fifth of the labels are flipped on
purpose. To run one rule alone:

    python -m tpmm_jax.train --config configs/quickstart.py --workdir runs/one_rule

Hardware: two CPU cores, two minutes. What it gave, and why it cannot rank the two, is
in docs/results.md.
"""

import sys

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
        # 9 + 23 = 32 tokens: pairs of every iteration have the same padded length,
        # so nothing is compiled twice.
        data=DataConfig(prompts="tpmm_jax.demo.toy:prompts", max_prompt_length=9),
        rollout=RolloutConfig(
            prompts_per_iteration=320,
            samples_per_prompt=4,
            max_new_tokens=23,
            batch_size=64,
        ),
        scorer=ScorerConfig(name="tpmm_jax.demo.toy:reward"),
        pairing=PairingConfig(flip_probability=0.2),
        reference=ReferenceConfig(rule="learned"),
        train=TrainConfig(batch_size=16, learning_rate=5e-4, epochs=3),
        # As many samples per prompt as in a rollout: one compiled sampler serves both.
        evaluation=EvaluationConfig(
            num_prompts=64,
            samples_per_prompt=4,
            scorers={"grammar": "tpmm_jax.demo.toy:grammatical"},
        ),
    )


if __name__ == "__main__":
    from tpmm_jax.demo.side_by_side import main

    sys.exit(main(sys.argv[0]))
