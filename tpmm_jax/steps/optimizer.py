"""AdamW and its learning rate."""

import jax
import numpy as np
import optax

from tpmm_jax.axes import Params
from tpmm_jax.steps.config import TrainConfig


def make_learning_rate(config: TrainConfig, total_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, from 0."""
    warmup = round(config.warmup_fraction * total_steps)
    rest = max(total_steps - warmup, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
        "constant": optax.constant_schedule(config.learning_rate),
    }[config.schedule]
    if warmup == 0:
        return after
    first = config.learning_rate / warmup
    rise = optax.linear_schedule(first, config.learning_rate, warmup - 1)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Returns AdamW's direction, without the learning rate.

    The rate is an argument of the step, so that iterations of different length share
    one compiled program.
    """
    # optax takes 1 - b of the number given and 1 - b^t in float32. For 0.999 the two
    # differ by 1.3e-5, and so did every first step by half of it; a float32 has one.
    b1, b2 = (float(np.float32(b)) for b in (config.b1, config.b2))
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=is_matrix),
    )


def is_matrix(params: Params) -> Params:
    """True for every leaf but norm scales ("scale") and biases ("..._bias")."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key != "scale" and not path[-1].key.endswith("_bias"),
        params,
    )
