"""A reward model as a mixture of experts, and merged back: the whole path of UMM-RM.

    export TPMM_ASSETS=/path/to/assets     # see docs/models.md
    tpmm train_reward --config configs/umm_rm.py --workdir runs/umm

Stories260k gets a reward head, its feed-forwards become a shared and four routed
experts, of which a token takes two; all is trained on the pairs of
reward_stories260k.py, the best model's experts are merged back by three rules, and the
start, the mixture and the three dense models are measured on held-out pairs and on
pairs of other beginnings and sentences. Needs the demo extra (VADER).

To upcycle a dense reward model that was trained before, as the paper does, and to see
what the mixture adds to it:

    tpmm train_reward --config configs/reward_stories260k.py --workdir runs/rm
    tpmm train_reward --config configs/umm_rm.py --workdir runs/umm_rm \\
        --set model.source=runs/rm
"""

from reward_stories260k import model_directory

from tpmm_jax.config import ModelSource, RewardConfig, RewardEvaluationConfig
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.models.upcycling import UpcyclingConfig
from tpmm_jax.steps import TrainConfig


def get_config() -> RewardConfig:
    """Returns the configuration."""
    return RewardConfig(
        model=ModelSource(source=model_directory(), remat=False),
        data=RewardDataConfig(pairs="reward_stories260k:pairs"),
        experts=UpcyclingConfig(count=4, top_k=2, shared=0.5),
        train=TrainConfig(learning_rate=1e-3, batch_size=16, epochs=2),
        evaluation=RewardEvaluationConfig(
            holdout_fraction=0.2,
            every=25,
            patience=3,
            sets={"elsewhere": "reward_stories260k:elsewhere"},
        ),
    )
