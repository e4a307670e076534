"""The programs of a reward model's training."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tpmm_jax.config import RewardConfig
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.table import round_up
from tpmm_jax.merging.expert_rules import ADAM, MICRO_BATCH, learned_step
from tpmm_jax.mesh import bytes_on_device, fill
from tpmm_jax.models import Decoder, ModelConfig
from tpmm_jax.planning.phases import Phase, pair_batch, step_args, struct
from tpmm_jax.reward_runs.sets import reward_table
from tpmm_jax.scoring.row_rewards import padded_length
from tpmm_jax.steps import (
    abstract_state,
    reward_step,
    rewards_and_routing_step,
    rewards_step,
)


def reward_model(config: RewardConfig, found: ModelConfig) -> ModelConfig:
    """Returns the reward model that a run trains, from what it begins with.

    Raises:
      BadInput: a mixture is to be given experts.
    """
    model = replace(found, output="reward")
    if config.experts.count == 0:
        return model
    return config.experts.of(model, config.model.source)


def pair_length(config: RewardConfig, model: ModelConfig) -> int:
    """Returns the tokens that pairs are padded to, as long as the config allows."""
    limit = model.max_positions
    return round_up(min(config.data.max_length, limit), limit)


def reward_phases(
    config: RewardConfig, decoder: Decoder, pairs: int | None
) -> list[Phase]:
    """Returns the programs of a reward model's training; calls are of a whole run.

    Args:
      pairs: of the data; None: not known, and one call of each is counted.
    """
    train, mesh = config.train, decoder.mesh
    length = pair_length(config, decoder.config)
    rows, share = train.filled(mesh), config.evaluation.holdout_fraction
    some = 0 if pairs is None else pairs
    steps = max(1, math.ceil(some * (1 - share) / train.batch_size) * train.epochs)
    state = abstract_state(decoder.abstract_trained(), train)
    looked = 1 + -(-steps // config.evaluation.every)
    size = 2 * train.micro_batch
    calls = looked * max(1, math.ceil(2 * some * share / size))
    phases = [
        Phase(
            name="train",
            program=reward_step(decoder, config.loss, train),
            args=step_args(decoder, state, _table(rows, length, mesh)),
            kwargs={"constants": None},
            calls=steps,
            tokens=2 * rows * length,
            made=bytes_on_device(decoder.abstract_trained()),
            dtype=decoder.compute_dtype,
        ),
        # Between steps, beside the optimizer's moments.
        replace(
            rating(decoder, "held-out rewards", size, length, calls, routing=True),
            held=bytes_on_device(state.opt_state),
        ),
    ]
    if decoder.config.experts is not None and "learned" in config.merge.rules:
        phases.append(_merging(config, decoder, length))
    return phases


def rating(
    decoder: Decoder,
    name: str,
    size: int,
    length: int,
    calls: float,
    *,
    held_in: str = "float32",
    routing: bool = False,
) -> Phase:
    """Returns the rewards of a batch of rows.

    Args:
      held_in: the dtype of the weights.
      routing: whether what a mixture's routers do is asked for.
    """
    rows, params = fill(decoder.mesh, size), decoder.abstract_params(held_in)
    length = padded_length(length, decoder.config.max_positions)
    tokens = struct(decoder.mesh, (rows, length), jnp.int32)
    program: Any = rewards_step
    more: tuple[Any, ...] = ()
    if routing and decoder.config.experts is not None:
        program = rewards_and_routing_step
        more = (struct(decoder.mesh, (rows,), jnp.float32),)
    return Phase(
        name=name,
        program=program,
        args=(decoder, params, tokens, tokens, *more),
        calls=calls,
        tokens=rows * length,
        dtype=decoder.compute_dtype,
    )


def _merging(config: RewardConfig, decoder: Decoder, length: int) -> Phase:
    """Returns the step that learns the weights of experts."""
    accumulation = -(-config.merge.batch_size // MICRO_BATCH)
    rows = accumulation * fill(decoder.mesh, MICRO_BATCH, sides=2)
    experts = decoder.config.experts
    assert experts is not None
    layers = len(experts.places(decoder.config.num_layers))
    logits = jax.ShapeDtypeStruct((layers, experts.count), jnp.float32)
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    variables = logits, jax.eval_shape(ADAM.init, logits), rate
    return Phase(
        name="merge experts",
        program=learned_step,
        args=(
            *(decoder, accumulation, decoder.abstract_params("float32")),
            *(variables, _table(rows, length, decoder.mesh)),
        ),
        calls=config.merge.steps,
        tokens=2 * rows * length,
    )


def _table(rows: int, length: int, mesh: Mesh | None) -> dict[str, Any]:
    """Returns the arrays of a reward model's pairs."""
    whole = pair_batch(rows, length, mesh, margin_B=0)
    kept = reward_table([PairRow([0], [0], [0])], length, 0)
    return {name: whole[name] for name in kept}
