"""The rules that weigh a mixture's experts, layer by layer: one function each.

A rule maps a mixture to weights m [L, X] (float64, each layer's sum is 1), which
``experts.merge_params`` merges by.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tpmm_jax.axes import Params
from tpmm_jax.data.batches import collate
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.reward_pairs import choose_held_out
from tpmm_jax.data.table import Table, pair_length, round_up, take
from tpmm_jax.errors import BadInput
from tpmm_jax.losses import (
    Batch,
    CoupledLoss,
    Metrics,
    RewardLossConfig,
    gradients,
    reward_loss,
)
from tpmm_jax.merging.experts import (
    MICRO_BATCH,
    dense_decoder,
    gate_sums,
    merge_params,
    merged_feed_forwards,
    micro_batches,
    pair_margins,
    with_feed_forwards,
)
from tpmm_jax.merging.learned import softmax
from tpmm_jax.mesh import fetch, fill, put_batch
from tpmm_jax.models import Decoder

# The start's logarithm of a gate that is never open.
_LEAST = 1e-12
ADAM = optax.scale_by_adam()


@dataclass(frozen=True, kw_only=True)
class ExpertMergeConfig:
    """How experts are weighed.

    Attributes:
      rule: a key of EXPERT_RULES.
      learning_rate, steps, batch_size: of "learned": Adam on b, the rate falling to 0
        along a cosine; pairs per step.
      holdout: of "learned": share of the prompts on which nothing is learned; there the
        weights have to beat their start.
      seed: of the split and the batches.
    """

    rule: str = "learned"
    learning_rate: float = 0.1
    steps: int = 100
    batch_size: int = 32
    holdout: float = 0.2
    seed: int = 0

    def validate(self, name: Callable[[str], str] = "merge.{}".format) -> None:
        """Raises BadInput for a value out of range.

        Args:
          name: what a field is called in messages.
        """
        if self.rule not in EXPERT_RULES:
            raise BadInput(
                f"{name('rule')} is {self.rule!r}; known rules: "
                f"{', '.join(EXPERT_RULES)}"
            )
        checks = {
            "learning_rate": (0 < self.learning_rate < float("inf"), "positive"),
            "steps": (self.steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "holdout": (0 < self.holdout < 1, "a share between 0 and 1"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for field_name, (good, wanted) in checks.items():
            if not good:
                value = getattr(self, field_name)
                raise BadInput(f"{name(field_name)} is {value}; use {wanted}")

    @property
    def needs_pairs(self) -> bool:
        """Whether the rule looks at pairs."""
        return self.rule != "uniform"


@dataclass(frozen=True)
class ExpertPairs:
    """Pairs that a rule looks at.

    Attributes:
      rows: those of ``table``; ``held_rows`` those of ``held_out``.
      table: what gates are counted on and weights learned on.
      held_out: pairs of other prompts, of "learned"; empty for other rules.
    """

    rows: list[PairRow] = field(repr=False)
    table: Table = field(repr=False)
    held_rows: list[PairRow] = field(repr=False)
    held_out: Table = field(repr=False)


@dataclass
class ExpertsContext:
    """What a rule may look at.

    Attributes:
      decoder, params: the mixture.
      step, advance: called with the loss of each learning step, and with the number of
        pairs that were read.
      report: what the rule wants recorded beside the weights.
    """

    config: ExpertMergeConfig
    decoder: Decoder
    params: Params
    pairs: ExpertPairs | None = None
    step: Callable[[float], None] = lambda loss: None
    advance: Callable[[int], None] = lambda pairs: None
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Layers that have routed experts, and these of a layer."""
        experts = self.decoder.config.experts
        assert experts is not None
        layers = experts.places(self.decoder.config.num_layers)
        return len(layers), experts.count

    def merge(self, weights_LX: np.ndarray) -> Params:
        """Returns the parameters of the dense model, float32."""
        return merge_params(self.decoder, self.params, weights_LX)

    def losses(self, weights_LX: np.ndarray) -> np.ndarray:
        """Returns the loss of each held-out pair under the merge, nats."""
        assert self.pairs is not None
        dense = dense_decoder(self.decoder)
        margins = pair_margins(
            dense, self.merge(weights_LX), self.pairs.held_out, self.advance
        )
        return np.logaddexp(0, -margins)


def expert_pairs(
    rows: Sequence[PairRow], config: ExpertMergeConfig, limit: int, pad_id: int
) -> ExpertPairs:
    """Returns pairs as a rule takes them; for "learned" a share of the prompts apart.

    Args:
      limit: the model's positions; no row is longer.

    Raises:
      BadInput: too few prompts to learn on some and judge on others.
    """
    kept, held = list(rows), list[PairRow]()
    if config.rule == "learned":
        groups = choose_held_out((r.group for r in rows), config.holdout, config.seed)
        kept = [row for row in rows if row.group not in groups]
        held = [row for row in rows if row.group in groups]
        if not kept or not held:
            raise BadInput(
                f"the pairs have {len({row.group for row in rows})} different prompts; "
                f"wanted enough to learn on some and hold {config.holdout:g} of them "
                "out: give more pairs"
            )
    elif not kept:
        raise BadInput("there are no pairs")
    length = round_up(pair_length(rows), limit)

    def table(some: list[PairRow]) -> Table:
        found = collate(some, length=length, pad_id=pad_id, whole=True)
        names = ("tokens_BNT", "mask_BNT", "weight_B")
        margin_B = np.zeros(len(some), np.float32)
        return {name: found[name] for name in names} | {"margin_B": margin_B}

    return ExpertPairs(kept, table(kept), held, table(held) if held else {})


def choose_experts(context: ExpertsContext) -> np.ndarray:
    """Returns the weights m [L, X] of the configured rule, float64, rows of sum 1."""
    return EXPERT_RULES[context.config.rule](context)


def uniform(context: ExpertsContext) -> np.ndarray:
    """1 / X each."""
    layers, count = context.shape
    return np.full((layers, count), 1.0 / count)


def gating(context: ExpertsContext) -> np.ndarray:
    """The mean gate probability over the pairs' real tokens.

    That is the router's softmax over all experts, the P of the load balance.
    """
    assert context.pairs is not None
    table, total_LX = context.pairs.table, np.zeros(context.shape)
    for batch, size in micro_batches(context.decoder, table):
        sums = gate_sums(context.decoder, context.params, batch)
        total_LX += fetch(sums).astype(np.float64)
        context.advance(size)
    if not np.isfinite(total_LX).all():
        raise BadInput(
            "gate probabilities are not finite on these pairs; the mixture's weights "
            "are damaged"
        )
    return total_LX / total_LX.sum(axis=1, keepdims=True)


def learned(context: ExpertsContext) -> np.ndarray:
    """softmax(b), b trained with Bradley-Terry, experts frozen; starts at ``gating``.

    Where the held-out loss is not below that of the start, the start is kept.
    """
    start_LX = gating(context)
    learned_LX = softmax(_learn(context, np.log(np.maximum(start_LX, _LEAST))))
    losses = {
        name: float(np.mean(context.losses(weights_LX)))
        for name, weights_LX in (("start", start_LX), ("learned", learned_LX))
    }
    kept = "learned" if losses["learned"] < losses["start"] else "start"
    context.report.update(
        start=start_LX.tolist(),
        learned=learned_LX.tolist(),
        held_out_loss=losses,
        kept=kept,
    )
    return learned_LX if kept == "learned" else start_LX


EXPERT_RULES: dict[str, Callable[[ExpertsContext], np.ndarray]] = {
    "uniform": uniform,
    "gating": gating,
    "learned": learned,
}


def _learn(context: ExpertsContext, start: np.ndarray) -> np.ndarray:
    """Returns the logits b [L, X] after the last step, float64."""
    config, pairs = context.config, context.pairs
    assert pairs is not None
    size = min(config.batch_size, len(pairs.rows))
    accumulation = -(-size // MICRO_BATCH)
    logits = jnp.asarray(start, jnp.float32)
    state = ADAM.init(logits)
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    for step in range(config.steps):
        rng = np.random.default_rng([config.seed, step])
        places = rng.permutation(len(pairs.rows))[:size]
        micro = fill(context.decoder.mesh, MICRO_BATCH, sides=2)
        rows = take(pairs.table, places, accumulation * micro)
        batch = put_batch(rows, context.decoder.mesh)
        variables = (logits, state, rate(step))
        logits, state, loss = learned_step(
            context.decoder, accumulation, context.params, variables, batch
        )
        context.step(float(loss))
    return fetch(logits).astype(np.float64)


@functools.partial(jax.jit, static_argnums=(0, 1))
def learned_step(
    decoder: Decoder,
    accumulation: int,
    params: Params,
    variables: tuple[jax.Array, Any, jax.Array],
    batch: Batch,
) -> tuple[jax.Array, Any, jax.Array]:
    """One step of Adam: the feed-forwards' gradient, pulled back to the logits."""
    logits, state, rate = variables
    loss_fn = reward_loss(dense_decoder(decoder), RewardLossConfig())
    assert not isinstance(loss_fn, CoupledLoss)

    def of_mlp(mlp: Params, batch: Batch, total: jax.Array) -> tuple[Any, Metrics]:
        return loss_fn(with_feed_forwards(params, mlp), batch, total)

    mlp, pull = jax.vjp(
        lambda b: merged_feed_forwards(decoder.config, params, jax.nn.softmax(b)),
        logits,
    )
    found, loss, _ = gradients(of_mlp, mlp, batch, accumulation, decoder.mesh)
    direction, state = ADAM.update(pull(found)[0], state)
    return logits - rate * direction, state, loss
