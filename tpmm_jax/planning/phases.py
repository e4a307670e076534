"""The programs that a config runs on the devices, with arguments that are shapes alone.

They are the loop's own: what the loop hands to a step, a phase hands to it here. All
prompts and answers are taken to be as long as the config's limits allow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tpmm_jax.config import Config
from tpmm_jax.data.batches import collate
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.table import round_up
from tpmm_jax.errors import BadInput
from tpmm_jax.losses import init_loss_state
from tpmm_jax.merging.config import MAX_EVALUATIONS
from tpmm_jax.merging.learned import gradient_fn
from tpmm_jax.merging.trees import add_leaf
from tpmm_jax.mesh import BATCH, FSDP, TENSOR, fill, sharding
from tpmm_jax.models import NO_NOISE, Decoder, ModelConfig
from tpmm_jax.planning.memory import bytes_on_device
from tpmm_jax.sampling.decode import sample
from tpmm_jax.sampling.layout import lay_out, sampling_mesh
from tpmm_jax.steps import (
    Frozen,
    abstract_state,
    pair_log_probs_step,
    preference_step,
    token_log_probs_step,
)

# The phase that rollout.batch_size makes smaller; train.accumulation does the others.
SAMPLE = "sample"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A program, and how often an iteration runs it.

    Attributes:
      program: a jitted function.
      args, kwargs: its arguments, arrays as shapes.
      calls: an iteration, on average over the run.
      tokens: that a call computes, padding included.
      turns: of a loop whose length the program does not say: tokens that are drawn.
      held: bytes on a device that lie beside its arguments.
      made: bytes on a device of what it is known to make: gradients, copies, caches;
        read where no compiler says what it takes.
    """

    name: str
    program: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    calls: float
    tokens: int = 0
    turns: int = 1
    held: int = 0
    made: int = 0

    def trace(self) -> Any:
        """Returns the program traced, not compiled: jax.stages.Traced."""
        return self.program.trace(*self.args, **self.kwargs)


@dataclass(frozen=True)
class Lengths:
    """What prompts, and prompts with answers, are padded to, tokens; prompt 0: none."""

    prompt: int
    pair: int


@dataclass(frozen=True)
class Counts:
    """What an iteration works on.

    Attributes:
      held_out: prompts; offline, pairs.
      answers: sampled answers that the evaluation's log-probs are of.
    """

    prompts: int
    train: int
    held_out: int
    answers: int


def run_lengths(config: Config, model: ModelConfig) -> Lengths:
    """Returns the longest that the config's limits allow.

    Raises:
      BadInput: the model has not so many positions.
    """
    data, new, limit = config.data, config.rollout.max_new_tokens, model.max_positions
    prompt = pair = 0
    if data.prompts is not None or data.eval_prompts is not None:
        prompt, pair = data.max_prompt_length, data.max_prompt_length + new
        if pair > limit:
            raise BadInput(
                f"data.max_prompt_length = {prompt} and rollout.max_new_tokens = {new} "
                f"are more than the model's {limit} positions together; lower one"
            )
    if config.offline:
        longest = data.max_prompt_length + data.max_completion_length
        pair = max(pair, min(longest, limit))
    return Lengths(round_up(prompt, limit - new), round_up(pair, limit))


def run_counts(config: Config, offline_pairs: int | None = None) -> Counts:
    """Returns what an iteration works on.

    Args:
      offline_pairs: of the whole run; None: as many as the rollout's defaults give.
    """
    total, share = config.rollout.prompts_per_iteration, config.pairing.holdout_fraction
    if config.offline and offline_pairs is not None:
        total = -(-offline_pairs // config.iterations)
    held_out = round(share * total)
    evaluated = config.evaluation.num_prompts * (1 + len(config.evaluation.sets))
    answers = evaluated * config.evaluation.samples_per_prompt
    sampled = config.data.prompts is not None or config.data.eval_prompts is not None
    return Counts(total, total - held_out, held_out, answers if sampled else 0)


def run_phases(
    config: Config, decoder: Decoder, memory: int | None, resident: int, counts: Counts
) -> list[Phase]:
    """Returns the programs of an iteration of preference training.

    Args:
      memory: of a device, bytes; None: not known.
      resident: bytes on a device that reward models and judges take throughout.
    """
    lengths = run_lengths(config, decoder.config)
    given = config, decoder, lengths, counts
    phases = []
    if lengths.prompt:
        phases += sampling_phases(*given, memory)
    phases += [_answers(*given)]
    if not config.loss.reference_free:
        phases += [*_reference(*given)]
    phases += [_training(*given)]
    return [replace(phase, held=phase.held + resident) for phase in phases]


def sampling_phases(
    config: Config,
    decoder: Decoder,
    lengths: Lengths,
    counts: Counts,
    memory: int | None,
) -> list[Phase]:
    """Returns how the policy is laid out anew, and the drawing of a batch."""
    rollout, mesh = config.rollout, decoder.mesh
    assert mesh is not None
    params, phases = decoder.abstract_params("float32"), []
    laid = decoder
    if mesh.shape[FSDP] > 1:
        laid = replace(decoder, mesh=sampling_mesh(decoder, memory))
    # As the layout gives them: cast, and split as the laid mesh has it.
    drawn = _place(
        jax.eval_shape(decoder.for_decoding, params), laid.abstract_params("float32")
    )
    if laid is not decoder:
        passes = (0 if config.offline else 1) + (1 if counts.answers else 0)
        program = lay_out(decoder, laid)
        phases.append(
            Phase(
                name="lay out",
                program=program,
                args=(params,),
                calls=passes,
                made=bytes_on_device(drawn),
            )
        )
    rows = fill(laid.mesh, rollout.batch_size)
    tokens = _integers(laid.mesh, rows, lengths.prompt)
    prompts = 0 if config.offline else -(-counts.prompts // rollout.batch_size)
    evaluated = config.evaluation.samples_per_prompt / rollout.samples_per_prompt
    calls = prompts + evaluated * _calls(counts.answers, rollout.batch_size)

    new, samples = rollout.max_new_tokens, rollout.samples_per_prompt
    drawing = Phase(
        name=SAMPLE,
        program=sample,
        args=(
            *(laid, drawn, tokens, tokens, _integers(laid.mesh, rows)),
            jax.eval_shape(lambda: jax.random.key(0)),
        ),
        kwargs={
            "num_samples": rollout.samples_per_prompt,
            "config": rollout.sampling(),
            "eos_ids": decoder.config.eos_ids or (0,),
            "pad_id": 0,
        },
        calls=calls,
        tokens=rows * (lengths.prompt + samples * new),
        turns=new,
        made=_cache(laid, rows * samples, lengths.prompt + new),
        # The weights that the iteration goes on with lie beside those that draw.
        held=bytes_on_device(params),
    )
    return [*phases, drawing]


def _answers(
    config: Config, decoder: Decoder, lengths: Lengths, counts: Counts
) -> Phase:
    """Returns the log-probs of answers: of the evaluation, and of held-out pairs."""
    rows = fill(decoder.mesh, 2 * config.train.micro_batch)
    tokens = _integers(decoder.mesh, rows, lengths.pair)
    held_out = counts.held_out * (
        2 if config.offline else config.rollout.samples_per_prompt
    )
    # Of the policy, theta_0 and the reference; and of a hold-out under all policies.
    passes = 3 + (config.iterations if config.reference.uses_holdout else 0)
    calls = 3 * _calls(counts.answers, rows) + passes * _calls(held_out, rows)
    params = decoder.abstract_params("float32")
    return Phase(
        name="log-probs of answers",
        program=token_log_probs_step,
        args=(decoder, params, tokens, tokens),
        calls=calls,
        tokens=rows * lengths.pair,
    )


def _reference(
    config: Config, decoder: Decoder, lengths: Lengths, counts: Counts
) -> list[Phase]:
    """Returns the merge and the log-probs of pairs under it."""
    mesh, micro = decoder.mesh, config.train.micro_batch
    params = decoder.abstract_params("float32")
    reference, phases = config.reference, []
    policies = config.iterations
    pooled = counts.held_out * policies / 2
    if not config.offline:
        pairs = config.rollout.samples_per_prompt
        pooled *= pairs * (pairs - 1) / 2
    if reference.rule == "learned" and reference.fit != "margins" and counts.held_out:
        some = max(1, min(micro, round(pooled)))
        filled, size = fill(mesh, some, sides=2), round(pooled)
        calls = float(MAX_EVALUATIONS)
        if reference.fit == "adam":
            size, calls = min(reference.batch_size, size), float(reference.steps)
        accumulation = -(-max(size, 1) // filled)
        rows = accumulation * filled
        batch = pair_batch(rows, lengths.pair, mesh, reference_BN=2)
        phases.append(
            Phase(
                name="fusion gradient",
                program=gradient_fn(decoder, reference.length_normalized, accumulation),
                args=(params, jax.ShapeDtypeStruct((), jnp.float32), batch),
                made=bytes_on_device(params),
                calls=calls,
                tokens=2 * rows * lengths.pair,
            )
        )
    if reference.rule not in ("sft", "previous", "trust_region"):
        leaf = max(jax.tree.leaves(params), key=lambda x: x.size)
        weight = jax.ShapeDtypeStruct((1,), jnp.float32)
        held = bytes_on_device(params)
        phases.append(
            Phase(
                name="merge, its largest leaf",
                program=add_leaf,
                args=(leaf, leaf, weight),
                # As if one leaf held all weights: the time is of bytes alone.
                calls=decoder.num_params / leaf.size * policies / 2,
                held=held,
            )
        )
    rows = fill(mesh, micro, sides=2)
    batch = pair_batch(rows, lengths.pair, mesh)
    phases.append(
        Phase(
            name="reference log-probs",
            program=pair_log_probs_step,
            args=(decoder, params, batch),
            kwargs={"ld_alpha": config.loss.ld_alpha},
            calls=_calls(counts.train, micro),
            tokens=2 * rows * lengths.pair,
        )
    )
    return phases


def _training(
    config: Config, decoder: Decoder, lengths: Lengths, counts: Counts
) -> Phase:
    """Returns the train step."""
    rows = config.train.filled(decoder.mesh)
    more = {} if config.loss.reference_free else {"reference_BN": 2}
    more |= {"margin_B": 0} if config.loss.needs_margins else {}
    more |= {"trust_B": 0} if config.pairing.weights == "agreement" else {}
    batch = pair_batch(rows, lengths.pair, decoder.mesh, **more)
    loss_state = init_loss_state(config.loss)
    trained, held = decoder.abstract_trained(), 0
    state = abstract_state(trained, config.train, loss_state)
    step = preference_step(decoder, config.loss, config.train)
    if config.reference.rule == "trust_region":
        held = bytes_on_device(decoder.abstract_params("float32"))
    return Phase(
        name="train",
        program=step.func,
        args=step_args(decoder, state, batch),
        kwargs=step.keywords,
        calls=config.train.epochs * _calls(counts.train, config.train.batch_size),
        tokens=2 * rows * lengths.pair,
        held=held,
        made=bytes_on_device(trained),
    )


def step_args(decoder: Decoder, state: Any, batch: Any) -> tuple[Any, ...]:
    """Returns a train step's arguments, with what it reads beside what it trains."""
    noise, lora = decoder.noise, decoder.lora
    drawn = noise != NO_NOISE or (lora is not None and lora.dropout > 0)
    key = jax.eval_shape(lambda: jax.random.key(0)) if drawn else None
    base = {} if lora is None else decoder.abstract_params("float32")
    frozen = Frozen(base, key) if base or drawn else None
    return state, batch, jax.ShapeDtypeStruct((), jnp.float32), frozen


def _calls(rows: float, size: int) -> int:
    return math.ceil(rows / size)


def _cache(decoder: Decoder, rows: int, slots: int) -> int:
    """Returns the bytes of keys and values of a batch on a device."""
    c, mesh = decoder.config, decoder.mesh
    assert mesh is not None
    shape = (c.num_layers, rows, slots, c.num_kv_heads, c.head_dim)
    where = sharding(mesh, shape, None, BATCH, None, TENSOR)
    one = jax.ShapeDtypeStruct(shape, jnp.dtype(decoder.compute_dtype), sharding=where)
    return 2 * bytes_on_device(one)


def _place(tree: Any, like: Any) -> Any:
    """Returns shapes with the shardings of others."""

    def place(x: Any, y: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y.sharding)

    return jax.tree.map(place, tree, like)


def struct(mesh: Mesh | None, shape: Sequence[int], dtype: Any) -> Any:
    """Returns a batch's array, as ``mesh.put_batch`` lays it."""
    where = None if mesh is None else sharding(mesh, shape, BATCH)
    return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=where)


def _integers(mesh: Mesh | None, *shape: int) -> Any:
    return struct(mesh, shape, jnp.int32)


def pair_batch(
    rows: int, length: int, mesh: Mesh | None, **more: int
) -> dict[str, Any]:
    """Returns the arrays of pairs.

    Args:
      more: further arrays of numbers; 2: one a side, 0: one a pair.
    """
    table = collate([PairRow([0], [0], [0])], length=length, pad_id=0)
    batch = {
        name: struct(mesh, (rows, *x.shape[1:]), x.dtype) for name, x in table.items()
    }
    for name, sides in more.items():
        batch[name] = struct(mesh, (rows, sides) if sides else (rows,), jnp.float32)
    return batch
