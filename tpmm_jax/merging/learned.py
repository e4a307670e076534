"""Fusion weights learned on held-out preference pairs (our reconstruction).

The merged model is scored as a policy against the SFT anchor theta_0:

    fixed       L(a)    = mean[-log sigma(beta D)] + lambda KL(softmax(a) || uniform)
    calibrated  L(a, s) = mean[-log sigma(exp(s) D)] + lambda KL(softmax(a) || uniform)

D is never taken against the merged model itself: there the reference enters with
a minus sign, and descent would select whatever most prefers the rejected answers.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tpmm_jax.axes import CHOSEN, REJECTED, Params
from tpmm_jax.data.table import Table, row_lengths, same_length, take
from tpmm_jax.losses import Batch, Metrics, gradients, pair_log_probs
from tpmm_jax.merging.config import ReferenceConfig
from tpmm_jax.merging.deltas import Deltas
from tpmm_jax.merging.scale import objective
from tpmm_jax.mesh import fetch, put_batch
from tpmm_jax.models import Decoder

OnStep = Callable[[dict[str, Any], dict[str, float]], None]


@dataclass(frozen=True)
class HeldOut:
    """Held-out pairs, their anchor log-probabilities, and how to run them.

    Attributes:
      table: the pairs (data.table), with reference_BN: log-probs under theta_0, nats.
      micro: pairs in one forward or backward pass.
      seed: of the minibatches.
      lengths: what pairs are padded to, to the least that holds a minibatch; none: all
        to the table's.
    """

    decoder: Decoder
    config: ReferenceConfig
    table: Table
    micro: int
    seed: int
    lengths: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return len(self.table["weight_B"])

    def rows(self, places: np.ndarray, size: int) -> Batch:
        """Returns the rows at ``places``, filled up to ``size`` with weight 0."""
        rows = take(self.table, places, size, self.lengths)
        return put_batch(rows, self.decoder.mesh)

    def margins(self, params: Params) -> np.ndarray:
        """Returns D of every held-out pair against theta_0, nats, float64 [P]."""
        how = (self.decoder, self.config.length_normalized)
        margin_P = np.zeros(self.size)
        lengths = self.lengths or self.table["mask_BNT"].shape[-1:]
        for places, _ in same_length(row_lengths(self.table), lengths, self.micro):
            margin_B = fetch(margin_step(*how, params, self.rows(places, self.micro)))
            margin_P[places] = margin_B[: len(places)]
        return margin_P

    def loss(self, params: Params) -> float:
        """Returns the held-out loss under the objective (without its KL term)."""
        return objective(self.margins(params), self.config)


@functools.partial(jax.jit, static_argnames=("decoder", "length_normalized"))
def margin_step(
    decoder: Decoder, length_normalized: bool, params: Params, batch: Batch
) -> jax.Array:
    """Returns D of each pair against theta_0, nats."""
    logps_BN = pair_log_probs(decoder, params, batch)
    ratios_BN = logps_BN - batch["reference_BN"]
    if length_normalized:
        ratios_BN /= jnp.maximum(jnp.sum(batch["completion_mask_BNT"], axis=-1), 1)
    return ratios_BN[:, CHOSEN] - ratios_BN[:, REJECTED]


@functools.cache
def gradient_fn(decoder: Decoder, length_normalized: bool, accumulation: int) -> Any:
    """Returns jitted (params, s, batch) -> (dL/dparams, dL/ds, L), KL term apart."""

    def loss_fn(
        both: tuple[Params, jax.Array], batch: Batch, total_weight: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        params, log_scale = both
        margin_B = margin_step(decoder, length_normalized, params, batch)
        losses_B = -jax.nn.log_sigmoid(jnp.exp(log_scale) * margin_B)
        return jnp.sum(batch["weight_B"] * losses_B) / total_weight, {}

    params = decoder.abstract_params("float32")
    where = None
    if decoder.mesh is not None:
        where = (jax.tree.map(lambda x: x.sharding, params), None, None)

    @functools.partial(jax.jit, out_shardings=where)
    def run(params: Params, log_scale: jax.Array, batch: Batch) -> Any:
        grads, loss, _ = gradients(
            loss_fn, (params, log_scale), batch, accumulation, decoder.mesh
        )
        return *grads, loss

    return run


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns softmax over checkpoints, float64."""
    logits = logits.astype(np.float64)
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def logits_gradient(
    logits_GK: np.ndarray, weight_gradient_GK: np.ndarray, kl_weight: float
) -> tuple[np.ndarray, float]:
    """Returns dL/da [G, K] and the KL term's value (mean over groups).

    Args:
      weight_gradient_GK: dL/dw of the data term.
    """
    w = softmax(logits_GK)
    groups, count = w.shape
    log_ratio = np.log(np.maximum(w, 1e-30) * count)
    kl = float(np.mean(np.sum(w * log_ratio, axis=-1)))
    total = weight_gradient_GK + kl_weight * (log_ratio + 1.0) / groups
    grad = w * (total - np.sum(w * total, axis=-1, keepdims=True))
    return grad, kl_weight * kl


def start_logits(
    config: ReferenceConfig, groups: int, count: int, carried: np.ndarray | None
) -> np.ndarray:
    """Returns float32 [G, K]: zeros, or the last iteration's and their mean."""
    if config.start == "zeros" or carried is None:
        return np.zeros((groups, count), np.float32)
    mean = carried.mean(axis=1, keepdims=True)
    fresh = np.repeat(mean, count - carried.shape[1], axis=1)
    return np.concatenate([carried, fresh], axis=1).astype(np.float32)


def learn(
    deltas: Deltas,
    held_out: HeldOut,
    *,
    carried: np.ndarray | None = None,
    progress: dict[str, Any] | None = None,
    on_step: OnStep = lambda progress, row: None,
) -> tuple[np.ndarray, float]:
    """Returns fusion logits float32 [G, K] and the scale of D, by Adam.

    Args:
      carried: the last iteration's logits, used if config.start is "carried".
      progress: what on_step was last given, to continue from there.
      on_step: called after each step with (progress, metrics); progress is JSON.
    """
    config = held_out.config
    size = min(config.batch_size, held_out.size)
    accumulation = -(-size // held_out.micro)
    padded = accumulation * held_out.micro
    run = gradient_fn(held_out.decoder, config.length_normalized, accumulation)
    variables: dict[str, Any] = {
        "logits": start_logits(config, len(deltas.names), deltas.count, carried),
        "log_scale": np.float32(np.log(config.beta)),
    }
    adam = optax.adam(config.learning_rate)
    opt_state, step = _fitted(adam.init(_roomy(variables)), deltas.count), 0
    if progress is not None:
        variables, opt_state, step = _unpack(progress, (variables, opt_state))
    while step < config.steps:
        rng = np.random.default_rng([held_out.seed, step])
        places = rng.permutation(held_out.size)[:size]
        theta = deltas.merge(softmax(variables["logits"]))
        g, d_scale, loss = run(
            theta, jnp.asarray(variables["log_scale"]), held_out.rows(places, padded)
        )
        del theta
        d_logits, kl = logits_gradient(
            variables["logits"], deltas.weight_gradient(g), config.kl_weight
        )
        del g
        free = config.objective == "calibrated"
        grads = {
            "logits": d_logits.astype(np.float32),
            "log_scale": np.float32(d_scale if free else 0.0),
        }
        updates, opt_state = adam.update(_roomy(grads), _roomy(opt_state))
        variables = optax.apply_updates(_roomy(variables), updates)
        variables, opt_state = _fitted((variables, opt_state), deltas.count)
        step += 1
        row = {"loss": float(loss) + kl, "scale": float(np.exp(variables["log_scale"]))}
        on_step(_pack((variables, opt_state), step), row)
    return variables["logits"], float(np.exp(variables["log_scale"]))


def _roomy(tree: Any) -> Any:
    """With zeros behind the logits, up to a power of two.

    Adam's arithmetic is compiled for each shape, and K grows by one per iteration;
    every program stays in memory. The zeros move nothing: it works on each number
    apart.
    """

    def pad(x: Any) -> np.ndarray:
        x = np.asarray(x)
        if x.ndim < 2:
            return x
        return np.pad(x, ((0, 0), (0, 2 ** (x.shape[1] - 1).bit_length() - x.shape[1])))

    return jax.tree.map(pad, tree)


def _fitted(tree: Any, count: int) -> Any:
    """The arrays of ``_roomy`` with ``count`` columns again."""

    def cut(x: Any) -> np.ndarray:
        return np.asarray(x)[:, :count] if np.ndim(x) == 2 else np.asarray(x)

    return jax.tree.map(cut, tree)


def _pack(state: Any, step: int) -> dict[str, Any]:
    leaves = [np.asarray(x).tolist() for x in jax.tree.leaves(state)]
    return {"step": step, "leaves": leaves}


def _unpack(progress: dict[str, Any], like: Any) -> tuple[Any, Any, int]:
    leaves, treedef = jax.tree.flatten(like)
    values = [
        np.asarray(value, np.asarray(leaf).dtype)
        for value, leaf in zip(progress["leaves"], leaves, strict=True)
    ]
    variables, opt_state = jax.tree.unflatten(treedef, values)
    return variables, opt_state, progress["step"]
