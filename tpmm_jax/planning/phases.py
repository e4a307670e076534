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
from tpmm_jax.merging.learned import gradient_fn, margin_step
from tpmm_jax.merging.trees import add_leaf
from tpmm_jax.mesh import BATCH, FSDP, TENSOR, bytes_on_device, fill, sharding
from tpmm_jax.models import NO_NOISE, Decoder, ModelConfig
from tpmm_jax.planning.counts import Counts
from tpmm_jax.sampling import SamplingConfig
from tpmm_jax.sampling.decode import sample
from tpmm_jax.sampling.layout import drawing_params, lay_out, sampling_mesh
from tpmm_jax.steps import (
    Frozen,
    abstract_state,
    pair_log_probs_step,
    preference_step,
    token_log_probs_step,
)

# How the phases begin that rollout.batch_size makes smaller.
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
      dtype: of its products.
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
    dtype: str = "float32"
    made: int = 0

    def trace(self) -> Any:
        """Returns the program traced, not compiled: jax.stages.Traced."""
        return self.program.trace(*self.args, **self.kwargs)


@dataclass(frozen=True)
class Lengths:
    """What prompts, and prompts with answers, are padded to, tokens; prompt 0: none."""

    prompt: int
    pair: int


def run_lengths(config: Config, model: ModelConfig) -> Lengths:
    """Returns the longest that the config's limits allow.

    Raises:
      BadInput: the model has not so many positions.
    """
    data, new, limit = config.data, config.rollout.max_new_tokens, model.max_positions
    prompt = pair = 0
    if data.prompts is not None or data.eval_prompts is not None:
        if new >= limit:
            raise BadInput(
                f"rollout.max_new_tokens = {new} leaves no room for a prompt in the "
                f"model's {limit} positions; lower it"
            )
        # Longer prompts are refused when they are read.
        prompt = min(data.max_prompt_length, limit - new)
        pair = prompt + new
    if config.offline:
        longest = data.max_prompt_length + data.max_completion_length
        pair = max(pair, min(longest, limit))
    return Lengths(round_up(prompt, limit - new), round_up(pair, limit))


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
    phases = _sampling(*given, memory) if lengths.prompt else []
    phases += [*_answers(*given), *_fusion(*given), *_merging(config, decoder, counts)]
    if not config.loss.reference_free:
        phases.append(_reference(*given))
    phases.append(_training(*given))
    dtype = decoder.compute_dtype
    return [replace(phase, held=phase.held + resident, dtype=dtype) for phase in phases]


def _sampling(
    config: Config,
    decoder: Decoder,
    lengths: Lengths,
    counts: Counts,
    memory: int | None,
) -> list[Phase]:
    """Returns how the policy is laid out anew, and the drawing of a batch."""
    rollout, evaluation = config.rollout, config.evaluation
    laid = laid_to_draw(decoder, memory)
    size, samples = rollout.batch_size, evaluation.samples_per_prompt
    batches = _calls(counts.prompts, size) + 2 * _calls(counts.chosen, size)
    # A set of prompts, or theta_t and the mean where one is chosen.
    laid_out = (counts.prompts > 0) + counts.sets
    laid_out += (counts.shipped > 0) + 2 * (counts.chosen > 0)
    # The weights that are trained lie beside those that draw, unless they are these.
    same = laid is decoder and decoder.compute_dtype == "float32"
    held = 0 if same else bytes_on_device(decoder.abstract_params("float32"))
    rollouts: list[tuple[str, int, float]] = []
    if not config.offline:
        rollouts = [(SAMPLE, rollout.samples_per_prompt, batches)]
    evaluated = [(f"{SAMPLE} to evaluate", samples, counts.evaluated)]
    if rollouts and samples == rollout.samples_per_prompt:
        rollouts, evaluated = [(SAMPLE, samples, batches + counts.evaluated)], []
    return laying_out("lay out", decoder, laid, laid_out) + [
        replace(
            drawing(
                name, laid, rollout.sampling(), (size, lengths.prompt), calls, answers
            ),
            held=held,
        )
        for name, answers, calls in rollouts + evaluated
    ]


def laid_to_draw(decoder: Decoder, memory: int | None) -> Decoder:
    """Returns the decoder on the mesh on which it draws, which may be its own."""
    assert decoder.mesh is not None
    if decoder.mesh.shape[FSDP] == 1:
        return decoder
    return replace(decoder, mesh=sampling_mesh(decoder, memory))


def laying_out(
    name: str, decoder: Decoder, laid: Decoder, calls: float, dtype: str = "float32"
) -> list[Phase]:
    """Returns how weights are laid out anew to draw; none where they stay.

    Args:
      dtype: of the weights.
    """
    if laid is decoder:
        return []
    phase = Phase(
        name=name,
        program=lay_out(decoder, laid),
        args=(decoder.abstract_params(dtype),),
        calls=calls,
        made=bytes_on_device(drawing_params(laid, dtype)),
    )
    return [phase]


def drawing(
    name: str,
    laid: Decoder,
    sampling: SamplingConfig,
    prompts: tuple[int, int],
    calls: float,
    samples: int = 1,
    dtype: str = "float32",
) -> Phase:
    """Returns the drawing of a batch of answers.

    Args:
      laid: on the mesh on which it draws.
      prompts: of a batch, and the tokens of each.
      samples: of each prompt.
      dtype: of the weights before they are cast to draw.
    """
    (size, length), new = prompts, sampling.max_new_tokens
    rows = fill(laid.mesh, size)
    tokens = _integers(laid.mesh, rows, length)
    return Phase(
        name=name,
        program=sample,
        args=(
            *(laid, drawing_params(laid, dtype), tokens, tokens),
            _integers(laid.mesh, rows),
            jax.eval_shape(lambda: jax.random.key(0)),
        ),
        kwargs={
            "num_samples": samples,
            "config": sampling,
            "eos_ids": laid.config.eos_ids or (0,),
            "pad_id": 0,
        },
        calls=calls,
        tokens=rows * (length + samples * new),
        turns=new,
        made=_cache(laid, rows * samples, length + new),
    )


def _answers(
    config: Config, decoder: Decoder, lengths: Lengths, counts: Counts
) -> list[Phase]:
    """Returns the log-probs of answers: evaluated, held-out, and those that agree."""
    rows = fill(decoder.mesh, 2 * config.train.micro_batch)
    calls = counts.answer_passes * _calls(counts.answers, rows)
    calls += counts.held_out_passes * _calls(counts.held_out, rows)
    calls += counts.training_passes * _calls(2 * counts.train, rows)
    tokens = _integers(decoder.mesh, rows, lengths.pair)
    return [
        Phase(
            name="log-probs of answers",
            program=token_log_probs_step,
            args=(decoder, decoder.abstract_params("float32"), tokens, tokens),
            calls=calls,
            tokens=rows * lengths.pair,
        )
    ]


def _fusion(
    config: Config, decoder: Decoder, lengths: Lengths, counts: Counts
) -> list[Phase]:
    """Returns how held-out pairs are read by merges of the policies."""
    mesh, reference = decoder.mesh, config.reference
    params, pooled = decoder.abstract_params("float32"), round(counts.pooled)
    micro = fill(mesh, max(1, min(config.train.micro_batch, pooled)), sides=2)
    phases = []
    if (looks := reference.evaluations) and pooled:
        size = min(reference.batch_size, pooled) if reference.fit == "adam" else pooled
        rows = -(-size // micro) * micro
        batch = pair_batch(rows, lengths.pair, mesh, reference_BN=2)
        program = gradient_fn(decoder, reference.length_normalized, rows // micro)
        phases.append(
            Phase(
                name="fusion gradient",
                program=program,
                args=(params, jax.ShapeDtypeStruct((), jnp.float32), batch),
                made=bytes_on_device(params),
                calls=looks,
                tokens=2 * rows * lengths.pair,
            )
        )
    if counts.judged and pooled:
        batch = pair_batch(micro, lengths.pair, mesh, reference_BN=2)
        phases.append(
            Phase(
                name="merges on held-out pairs",
                program=margin_step,
                args=(decoder, reference.length_normalized, params, batch),
                calls=counts.judged * _calls(pooled, micro),
                tokens=2 * micro * lengths.pair,
            )
        )
    return phases


def _merging(config: Config, decoder: Decoder, counts: Counts) -> list[Phase]:
    if not counts.merges:
        return []
    params = decoder.abstract_params("float32")
    leaf = max(jax.tree.leaves(params), key=lambda x: x.size)
    weight = jax.ShapeDtypeStruct((1,), jnp.float32)
    policies = (1 + config.iterations) / 2
    phase = Phase(
        name="merge, its largest leaf",
        program=add_leaf,
        args=(leaf, leaf, weight),
        # As if one leaf held all weights: the time is of bytes alone.
        calls=counts.merges * policies * decoder.num_params / leaf.size,
        # The merge, and theta_0, which it is compared with; or LoRA's base, and what
        # the leaf is added to.
        held=2 * bytes_on_device(params)
        + (0 if decoder.lora is None else 2 * bytes_on_device(leaf)),
    )
    return [phase]


def _reference(
    config: Config, decoder: Decoder, lengths: Lengths, counts: Counts
) -> Phase:
    """Returns the log-probs of training pairs under the reference."""
    micro = config.train.micro_batch
    rows = fill(decoder.mesh, micro, sides=2)
    batch = pair_batch(rows, lengths.pair, decoder.mesh)
    return Phase(
        name="reference log-probs",
        program=pair_log_probs_step,
        args=(decoder, decoder.abstract_params("float32"), batch),
        kwargs={"ld_alpha": config.loss.ld_alpha},
        calls=counts.reference_passes * _calls(counts.train, micro),
        tokens=2 * rows * lengths.pair,
    )


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
      more: name of a further array -> 2: one number per side; 0: one per pair.
    """
    table = collate([PairRow([0], [0], [0])], length=length, pad_id=0)
    batch = {
        name: struct(mesh, (rows, *x.shape[1:]), x.dtype) for name, x in table.items()
    }
    for name, sides in more.items():
        batch[name] = struct(mesh, (rows, sides) if sides else (rows,), jnp.float32)
    return batch
