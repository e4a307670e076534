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

Measured with this seed, percent of pairs [95 % interval over prompts]:

                    179 held-out pairs    295 pairs elsewhere
    start           44.7 [35.3, 54.5]     41.0 [34.0, 48.4]
    mixture         90.5 [83.8, 94.6]     61.7 [55.0, 68.0]
    merged uniform  91.6 [84.9, 95.5]     61.0 [54.3, 67.4]
    merged gating   91.6 [84.9, 95.5]     61.4 [54.6, 67.7]
    merged learned  as gating: what was learned was no better on pairs held out from it

The dense run of reward_stories260k.py states 93 % [87, 96] and 65 % [58, 71]: nothing
here is above it. This run took 5:18 by the clock on two cores beside two other
processes, with programs that an earlier run had compiled (JAX_COMPILATION_CACHE_DIR);
without those, 6 minutes of CPU time.
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
