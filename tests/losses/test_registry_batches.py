"""Which losses see what else is in a pair's batch."""

import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.losses import LOSSES, LossConfig, is_coupled, pair_loss, sees_batch
from tpmm_jax.losses.inputs import example_pair


@pytest.mark.parametrize(
    "name", [n for n, x in LOSSES.items() if not (x.needs_margins or is_coupled([n]))]
)
def test_losses_that_see_the_batch_are_those_with_a_mean_over_its_tokens(
    name: str,
) -> None:
    config = LossConfig(name=name, cpo_alpha=1.0)
    pair = example_pair()
    values = [
        np.asarray(
            pair_loss(
                pair._replace(mean_length=jnp.float32(length)), config.objective()
            )
        )
        for length in (7.0, 70.0)
    ]
    assert (values[0] != values[1]).any() == sees_batch([name])


def test_coupled_losses_see_the_batch() -> None:
    assert sees_batch(["dpo", "aot"]) and sees_batch(["dpo", "sft"])
    assert not sees_batch(["dpo", "ipo"])
    assert LossConfig(name=["dpo", "sft"]).sees_batch
