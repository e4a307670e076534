"""The jitted steps: train, preference loss, log-probs of pairs. Pure functions.

A train step is built from any ``losses.gradients.LossFn``: preferences and next
tokens here, a reward model's margins alike.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from tpmm_jax.axes import CHOSEN, REJECTED, Params
from tpmm_jax.errors import BadInput
from tpmm_jax.losses import (
    Batch,
    CoupledLoss,
    LossConfig,
    LossFn,
    Metrics,
    coupled_gradients,
    coupled_loss,
    gradients,
    init_loss_state,
    log_probs,
    loss_inputs,
    pair_log_probs,
    pair_loss,
    pair_scores,
    preference_loss,
    referenced,
    with_state,
)
from tpmm_jax.models import Adapted, Decoder


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One iteration's optimisation.

    Attributes:
      epochs: passes over the iteration's training pairs.
      batch_size: pairs an optimizer step.
      accumulation: micro-batches that a step is computed in; divides batch_size.
      learning_rate: peak; 5e-7 is usual at 2B to 8B parameters.
      schedule: "cosine" and "linear" fall to 0 over the iteration's steps.
      warmup_fraction: share of the steps over which the rate rises from 0.
      weight_decay: decoupled, on matrices only (as transformers' Trainer does).
      max_grad_norm: global norm above which gradients are scaled down.
      checkpoint_every: steps between saves inside an iteration; 0: none.
    """

    epochs: int = 1
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: float = 0.1
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    checkpoint_every: int = 50

    def validate(self) -> None:
        """Raises BadInput for a value out of range."""
        checks = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "accumulation": (
                self.accumulation >= 1 and self.batch_size % self.accumulation == 0,
                f"a divisor of train.batch_size = {self.batch_size}",
            ),
            "learning_rate": (
                0 < self.learning_rate < float("inf"),
                "a positive, finite number",
            ),
            "warmup_fraction": (0 <= self.warmup_fraction < 1, "in [0, 1)"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "b1": (0 <= self.b1 < 1, "in [0, 1)"),
            "b2": (0 <= self.b2 < 1, "in [0, 1)"),
            "eps": (self.eps > 0, "positive"),
            "max_grad_norm": (self.max_grad_norm > 0, "positive"),
            "checkpoint_every": (self.checkpoint_every >= 0, "0 (never) or more"),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                raise BadInput(f"train.{name} is {getattr(self, name)}; use {wanted}")


class TrainState(NamedTuple):
    """What a step consumes and returns; donated.

    Attributes:
      step: steps done, int32; -1 - n: step n was not finite, and the state is as it
        was before that step.
      loss_state: what a loss carries from step to step.
    """

    params: Params
    opt_state: Any
    step: Any
    loss_state: Any = ()


class Frozen(NamedTuple):
    """What a step of LoRA reads beside the adapters in its state; not donated.

    Attributes:
      base: the fixed weights.
      dropout_key: of the iteration; each step folds its number in. None: no dropout.
    """

    base: Params
    dropout_key: Any = None


# (state, batch, learning rate, Frozen for LoRA) -> (state, metrics)
TrainStep = Callable[..., tuple[TrainState, Metrics]]


def schedule(config: TrainConfig, total_steps: int) -> optax.Schedule:
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
    return optax.chain(
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=is_matrix),
    )


def is_matrix(params: Params) -> Params:
    """True for every leaf but norm scales ("scale") and biases ("..._bias")."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key != "scale" and not path[-1].key.endswith("_bias"),
        params,
    )


def abstract_state(
    decoder: Decoder, config: TrainConfig, loss: LossConfig | None = None
) -> TrainState:
    """Returns the shapes, dtypes and shardings of a state; moments lie as weights."""
    params = decoder.abstract_trained()
    optimizer, mesh = make_optimizer(config), decoder.mesh
    replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())

    def scalar(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated)

    opt_state = optax.tree.map_params(
        optimizer,
        lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p.sharding),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=scalar,
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    loss_state = () if loss is None else init_loss_state(loss)
    return TrainState(params, opt_state, step, jax.tree.map(scalar, loss_state))


def shardings(tree: Any) -> Any:
    """Returns a tree of shardings, or None off a mesh."""
    if jax.tree.leaves(tree)[0].sharding is None:
        return None
    return jax.tree.map(lambda x: x.sharding, tree)


@functools.cache
def _optimizer_init(decoder: Decoder, config: TrainConfig) -> Callable[..., Any]:
    where = shardings(abstract_state(decoder, config))
    optimizer = make_optimizer(config)
    return jax.jit(
        lambda params: (optimizer.init(params), jnp.zeros((), jnp.int32)),
        out_shardings=None if where is None else (where.opt_state, where.step),
    )


def init_state(
    decoder: Decoder, config: TrainConfig, params: Params, loss_state: Any = ()
) -> TrainState:
    """Returns a state at step 0."""
    opt_state, step = _optimizer_init(decoder, config)(params)
    return TrainState(params, opt_state, step, _own(decoder, loss_state))


def _own(decoder: Decoder, tree: Any) -> Any:
    """Returns copies that a step may donate: replicated, no two in one buffer."""
    mesh = decoder.mesh
    where = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    copy = jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=where)
    return copy(tree)


def language_model_loss(decoder: Decoder, chunk_bytes: int) -> LossFn:
    """Returns the mean negative log-probability a token, for pretraining.

    The batch: tokens_BT, mask_BT int32; weight_B float32, each row's number of
    predicted tokens.
    """

    def loss_fn(
        params: Params | Adapted, batch: Batch, total_weight: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        logp = log_probs(
            decoder,
            params,
            batch["tokens_BT"],
            batch["mask_BT"],
            chunk_bytes=chunk_bytes,
        )
        logp *= (batch["weight_B"] > 0)[:, None]
        return -jnp.sum(logp) / total_weight, {}

    return loss_fn


def bind(
    loss_fn: LossFn | CoupledLoss, frozen: Frozen | None, step: jax.Array
) -> LossFn | CoupledLoss:
    """Returns the loss as a function of what is trained alone."""
    if frozen is None:
        return loss_fn
    key = frozen.dropout_key
    key = None if key is None else jax.random.fold_in(key, step)

    def of_adapters(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda adapters, *rest: function(
            Adapted(frozen.base, adapters, key), *rest
        )

    if isinstance(loss_fn, CoupledLoss):
        return loss_fn._replace(scores=of_adapters(loss_fn.scores))
    return of_adapters(loss_fn)


def make_train_step(
    loss_fn: LossFn | CoupledLoss,
    config: TrainConfig,
    decoder: Decoder,
    loss: LossConfig | None = None,
) -> TrainStep:
    """Returns the jitted step (state, batch, learning rate); the state is donated.

    With LoRA the state's params are the adapters, and a further argument is Frozen.

    Its metrics are of the state before the update: loss, grad_norm (L2, before
    clipping), and what the loss function reports. A step of which one of these is not
    finite changes nothing, nor does any step after it: the state stays the last good
    one, see TrainState.step.
    """
    optimizer = make_optimizer(config)
    where = shardings(abstract_state(decoder, config, loss))

    # Pinned: the compiler would choose other shardings for what it returns.
    @functools.partial(
        jax.jit,
        donate_argnums=0,
        out_shardings=None if where is None else (where, None),
    )
    def step(
        state: TrainState,
        batch: Batch,
        learning_rate: jax.Array,
        frozen: Frozen | None = None,
    ) -> tuple[TrainState, Metrics]:
        grads, loss, metrics, loss_state = state_gradients(
            loss_fn, state, batch, config, decoder, frozen
        )
        norm = optax.global_norm(grads)
        # A product fuses into the update; optax's quotient makes a second tree.
        scale = jnp.minimum(1.0, config.max_grad_norm / (norm + 1e-6))
        grads = jax.tree.map(lambda g: scale * g, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        metrics = {"loss": loss, "grad_norm": norm, **metrics}
        new = TrainState(params, opt_state, state.step + 1, loss_state)
        # The metrics too: an infinite log-ratio can leave a finite loss.
        good = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
        good &= state.step >= 0
        stopped = jnp.where(state.step < 0, state.step, -1 - state.step)
        old = state._replace(step=stopped)
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old), metrics

    return step


def state_gradients(
    loss_fn: LossFn | CoupledLoss,
    state: TrainState,
    batch: Batch,
    config: TrainConfig,
    decoder: Decoder,
    frozen: Frozen | None = None,
) -> tuple[Params, jax.Array, Metrics, Any]:
    """Returns (gradients, loss, metrics, next loss state) of a batch."""
    params, accumulation = state.params, config.accumulation
    loss_fn = bind(loss_fn, frozen, state.step)
    if isinstance(loss_fn, CoupledLoss):
        return coupled_gradients(
            loss_fn, params, batch, state.loss_state, accumulation, decoder.mesh
        )
    found = gradients(loss_fn, params, batch, accumulation, decoder.mesh)
    return *found, state.loss_state


def pair_loss_fn(
    decoder: Decoder, loss: LossConfig, chunk_bytes: int
) -> LossFn | CoupledLoss:
    """Returns the loss function of pairs: in one pass, where their losses allow it."""
    kind = coupled_loss if loss.coupled else preference_loss
    return kind(decoder, loss, chunk_bytes)


@functools.cache
def preference_step(
    decoder: Decoder, loss: LossConfig, train: TrainConfig, chunk_bytes: int
) -> TrainStep:
    """Returns the train step of pairs, compiled once for a whole run."""
    loss_fn = pair_loss_fn(decoder, loss, chunk_bytes)
    return make_train_step(loss_fn, train, decoder, loss)


@functools.cache
def gradient_norm_step(
    decoder: Decoder, loss: LossConfig, train: TrainConfig, chunk_bytes: int
) -> Callable[..., jax.Array]:
    """Returns the norm of a batch's gradient, to look for what made it not finite."""
    loss_fn = pair_loss_fn(decoder, loss, chunk_bytes)

    @jax.jit
    def norm(
        state: TrainState, batch: Batch, frozen: Frozen | None = None
    ) -> jax.Array:
        return optax.global_norm(
            state_gradients(loss_fn, state, batch, train, decoder, frozen)[0]
        )

    return norm


@functools.partial(jax.jit, static_argnames=("decoder", "chunk_bytes", "ld_alpha"))
def log_probs_step(
    decoder: Decoder,
    params: Params,
    batch: Batch,
    *,
    chunk_bytes: int,
    ld_alpha: float | None = None,
) -> jax.Array:
    """Returns log p(completion | prompt) [B, N] of a batch of pairs, nats."""
    return pair_log_probs(
        decoder, params, batch, chunk_bytes=chunk_bytes, ld_alpha=ld_alpha
    )


@functools.partial(jax.jit, static_argnames=("decoder", "chunk_bytes"))
def token_log_probs_step(
    decoder: Decoder,
    params: Params,
    tokens_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    chunk_bytes: int,
) -> jax.Array:
    """Returns log p of every next token [B, T-1], nats."""
    return log_probs(decoder, params, tokens_BT, mask_BT, chunk_bytes=chunk_bytes)


@functools.partial(jax.jit, static_argnames=("decoder", "loss", "chunk_bytes"))
def check_step(
    decoder: Decoder,
    loss: LossConfig,
    params: Params,
    batch: Batch,
    shift: jax.Array,
    swap: jax.Array,
    *,
    chunk_bytes: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns D [B] and the loss with policy = reference, for the self-check.

    The loss is the batch's mean of the terms that look at the reference, without WPO's
    weights, the reference's log-probs replaced by the policy's.

    Args:
      shift: nats added to the reference's chosen log-prob, of D only.
      swap: bool scalar, whether chosen and rejected change places in D.
    """
    scores = pair_scores(decoder, params, batch, loss, chunk_bytes=chunk_bytes)
    logps = loss_inputs(scores, batch, loss)
    equal = logps._replace(reference_BN=logps.policy_BN, wpo_BN=None)
    equal, *_ = with_state(equal, init_loss_state(loss), loss)
    weight_B = batch["weight_B"]
    value = jnp.sum(weight_B * pair_loss(equal, referenced(loss))) / jnp.sum(weight_B)
    reference_BN = batch["reference_BN"].at[:, CHOSEN].add(shift)
    ratios_BN = logps.policy_BN - reference_BN
    swapped_BN = ratios_BN[:, (REJECTED, CHOSEN)]
    ratios_BN = jnp.where(swap, swapped_BN, ratios_BN)
    return ratios_BN[:, CHOSEN] - ratios_BN[:, REJECTED], value
