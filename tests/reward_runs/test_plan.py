"""What seeds decide in a reward run."""

import types
from dataclasses import replace

import pytest
import tiny_reward

from tpmm_jax.config import load_config
from tpmm_jax.errors import BadInput
from tpmm_jax.reward_runs.plan import RewardPlan, order_seed


def places(config):
    """Returns the pairs of the first step, of 40."""
    sets = types.SimpleNamespace(train=range(40))
    plan = types.SimpleNamespace(config=config, sets=sets, lengths=(64,))
    return RewardPlan.order.func(plan).places(0).tolist()


def test_order_seed_changes_the_order_alone():
    config = tiny_reward.get_config()
    other = replace(config, order_seed=5)
    assert places(other) != places(config)
    assert places(replace(config, order_seed=config.seed)) == places(config)
    assert places(replace(config, seed=5)) == places(other)
    assert other.seed == config.seed


def test_a_negative_order_is_refused(tmp_path):
    path = tmp_path / "reward_ordered.py"
    path.write_text("from tiny_reward import get_config  # noqa\n")
    config = load_config(path, ["order_seed=3"], kind=type(tiny_reward.get_config()))
    assert order_seed(config) == 3
    with pytest.raises(BadInput, match="order_seed is -1; use 0 or more"):
        replace(config, order_seed=-1).validate()
