"""The programs of reward models: of their training, and as raters of a run."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tpmm_jax.config import Config, RewardConfig
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.table import round_up
from tpmm_jax.errors import BadInput
from tpmm_jax.merging.expert_rules import ADAM, MICRO_BATCH, learned_step
from tpmm_jax.mesh import fill
from tpmm_jax.models import Decoder, ModelConfig
from tpmm_jax.planning.memory import bytes_on_device
from tpmm_jax.planning.phases import Lengths, Phase, pair_batch, step_args, struct
from tpmm_jax.planning.sizes import find_sizes
from tpmm_jax.reward_runs.sets import reward_table
from tpmm_jax.scoring import JUDGE, RewardScorer
from tpmm_jax.scoring.named import REWARD
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
    batch = _table(rows, length, mesh)
    state = abstract_state(decoder.abstract_trained(), train)
    moments = bytes_on_device(state.opt_state)
    phases = [
        Phase(
            name="train",
            program=reward_step(decoder, config.loss, train),
            args=step_args(decoder, state, batch),
            kwargs={"constants": None},
            calls=steps,
            tokens=2 * rows * length,
            made=bytes_on_device(decoder.abstract_trained()),
        )
    ]
    looked = 1 + -(-steps // config.evaluation.every)
    answers = max(1, math.ceil(2 * some * share / train.micro_batch))
    phases.append(
        _rating(
            decoder, "held-out rewards", train.micro_batch, length, looked * answers
        )
    )
    # Between steps, beside the optimizer's moments.
    phases[-1] = replace(phases[-1], held=moments)
    if decoder.config.experts is not None and "learned" in config.merge.rules:
        phases.append(_merging(config, decoder, length))
    return phases


def rater_phases(
    config: Config, mesh: Mesh, lengths: Lengths, note: Callable[[str], None]
) -> tuple[list[Phase], int]:
    """Returns the programs of the reward models that rate, and what all models hold.

    Their weights lie on the devices throughout the run.

    Args:
      note: told of a model whose sizes are not known.
    """
    names = [*config.scorer.names, config.madpo.margins or ""]
    for one in config.evaluation.scorers.values():
        names += [one] if isinstance(one, str) else one
    names += config.evaluation.judges.values()
    phases, held = [], 0
    for name in dict.fromkeys(x for x in names if x.startswith((REWARD, JUDGE))):
        source = name.removeprefix(REWARD).removeprefix(JUDGE)
        options = config.scorer.options if [*config.scorer.names] == [name] else {}
        dtype = str(options.get("dtype", "float32"))
        if name.startswith(JUDGE):
            dtype = config.judge.dtype
        try:
            model = find_sizes(source, name)
        except BadInput:
            note(f"{name} is not counted: its sizes are not known here")
            continue
        decoder = Decoder(model, compute_dtype=dtype, mesh=mesh)
        held += bytes_on_device(decoder.abstract_params(dtype))
        if name.startswith(REWARD):
            size = int(options.get("batch_size", RewardScorer.batch_size))
            drawn = config.rollout.prompts_per_iteration
            drawn *= config.rollout.samples_per_prompt
            calls = math.ceil(drawn / size)
            phases.append(_rating(decoder, name, size, lengths.pair, calls, dtype))
    return phases, held


def _rating(
    decoder: Decoder,
    name: str,
    size: int,
    length: int,
    calls: float,
    dtype: str = "float32",
) -> Phase:
    rows = fill(decoder.mesh, size)
    tokens = struct(decoder.mesh, (rows, length), jnp.int32)
    program: Any = rewards_step
    more: tuple[Any, ...] = ()
    if decoder.config.experts is not None:
        program = rewards_and_routing_step
        more = (struct(decoder.mesh, (rows,), jnp.float32),)
    return Phase(
        name=name,
        program=program,
        args=(decoder, decoder.abstract_params(dtype), tokens, tokens, *more),
        calls=calls,
        tokens=rows * length,
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
