"""Weighted sums and inner products over parameter trees, leaf by leaf, in float32.

Weights are ``weights_GK``: K checkpoints, and either one group (granularity
"model") or L + P groups (granularity "layer"): one per layer, then one for each
parameter outside the layers, in the order of its name.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.mesh import bytes_on_device, fetch
from tpmm_jax.models.lora import put

Path = tuple[str, ...]


def leaves_by_path(params: Params) -> dict[Path, Any]:
    """Returns every leaf under its path, in the order of jax.tree.leaves."""
    leaves = jax.tree.leaves_with_path(params)
    return {tuple(str(key.key) for key in path): leaf for path, leaf in leaves}


def group_names(params: Params, granularity: str) -> list[str]:
    """Returns the name of each group of weights."""
    if granularity == "model":
        return ["model"]
    layers = jax.tree.leaves(params["layers"])[0].shape[0]
    outside = sorted(name for name in params if name != "layers")
    return [f"layer {i}" for i in range(layers)] + outside


def groups_of(path: Path, names: Sequence[str]) -> slice:
    """Returns which groups weigh a leaf: one or, for a leaf of all layers, L."""
    if len(names) > 1 and path[0] == "layers":
        return slice(sum(name.startswith("layer ") for name in names))
    place = names.index(path[0]) if len(names) > 1 else 0
    return slice(place, place + 1)


def one_hot(groups: int, count: int, k: int) -> np.ndarray:
    """Returns the weights [groups, count] that choose checkpoint k."""
    return np.tile(np.eye(count)[k], (groups, 1))


def one_hot_index(weights_GK: np.ndarray) -> int | None:
    """Returns k if every group's weight is 1 on checkpoint k and 0 elsewhere."""
    groups, count = weights_GK.shape
    k = int(np.argmax(weights_GK[0]))
    return k if np.array_equal(weights_GK, one_hot(groups, count, k)) else None


def policy_is_reference(
    weights_GK: np.ndarray,
    step: int,
    reset_every: int | None = None,
    train_from: str = "previous",
) -> bool:
    """Returns whether an optimizer step begins with the policy as its own reference.

    Every margin is 0 there but for rounding: the step says nothing of the pairs.

    Args:
      weights_GK: of theta_0, ..., theta_{t-1} in the reference.
      step: of the iteration, from 0.
      reset_every: steps after which the reference is set to the policy; None: never.
      train_from: "previous", "theta_0" or "reference": where the training begins.
    """
    start = 0 if train_from == "theta_0" else weights_GK.shape[1] - 1
    if train_from != "reference" and one_hot_index(weights_GK) != start:
        return False
    return step % reset_every == 0 if reset_every else step == 0


@jax.jit
def scale_leaf(x: jax.Array, weight: jax.Array) -> jax.Array:
    """weight * x in float32; weights [L] act on the leading axis."""
    return x.astype(jnp.float32) * _along(weight, x)


@jax.jit
def add_leaf(total: jax.Array, delta: jax.Array, weight: jax.Array) -> jax.Array:
    """total + weight * delta in float32; weights [L] act on the leading axis."""
    return total + _along(weight, delta) * delta.astype(jnp.float32)


@jax.jit
def subtract_leaf(x: jax.Array, base: jax.Array) -> jax.Array:
    """x - base in float32."""
    return x.astype(jnp.float32) - base.astype(jnp.float32)


@jax.jit
def _row_dots(gradient: jax.Array, delta: jax.Array) -> jax.Array:
    product = gradient.astype(jnp.float32) * delta.astype(jnp.float32)
    return jnp.sum(product, axis=-1)


def dot_leaf(gradient: jax.Array, delta: jax.Array, groups: int) -> np.ndarray:
    """<gradient, delta> of each of the parts of the leading axis, float64 [groups].

    The last axis is summed in float32 on the device, the others on the host, so
    that a sum of 1e9 products keeps its digits.
    """
    rows = fetch(_row_dots(gradient, delta)).astype(np.float64)
    return rows.reshape(groups, -1).sum(axis=1)


def _along(weight: jax.Array, x: jax.Array) -> jax.Array:
    weight = jnp.asarray(weight, jnp.float32)
    return weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim))


def weighted_sum(
    models: Iterable[Params], weights: Sequence[float]
) -> tuple[Params, float]:
    """Returns sum_k w_k theta_k in float32 and its signal-to-rounding ratio.

    Computed as theta_0 (sum_k w_k) + sum_k w_k (theta_k - theta_0), so that small
    differences between checkpoints are not rounded away. A one-hot w returns a
    copy, bit for bit, and the ratio inf: nothing is rounded. Models are consumed one
    at a time, all of them.

    >>> models = [{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}]
    >>> weighted_sum(models, [0.25, 0.75])[0]
    {'w': Array([0.75, 0.75], dtype=float32)}

    Args:
      models: parameter trees of one architecture; K of them.
      weights: K real numbers.
    """
    merged: Params = {}
    base: Params = {}
    hot = one_hot_index(np.asarray([weights], np.float64))
    for k, (params, weight) in enumerate(zip(models, weights, strict=True)):
        if hot is not None:
            if k == hot:
                merged = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
        elif k == 0:
            base = params
            total_weight = jnp.float32(sum(float(w) for w in weights))
            merged = jax.tree.map(lambda x, w=total_weight: scale_leaf(x, w), params)
        else:
            weight = jnp.float32(weight)
            merged = jax.tree.map(
                lambda t, x, b, w=weight: add_leaf(t, subtract_leaf(x, b), w),
                merged,
                params,
                base,
            )
    if hot is not None:
        return merged, float("inf")
    return merged, signal_to_rounding(merged, base, "float32")


# Bytes on a device of the leaves that a merge reads at a time.
PART_BYTES = 2**28


def merge_parts(
    read: Callable[[int, Params, Params | None], Params],
    target: Params,
    weights_GK: np.ndarray,
    names: Sequence[str],
    limit: int = PART_BYTES,
) -> Params:
    """Returns theta_0 sum_k w_k + sum_k w_k (theta_k - theta_0), float32.

    Leaves are read in parts, each once of every checkpoint: a few of them are in memory
    beside the sum and what ``read`` keeps. Bit for bit what ``Deltas.merge`` gives.

    Args:
      read: returns some leaves of checkpoint k, from (k, a part of ``target``, those
        leaves of theta_0, or None where k is 0).
      target: what a checkpoint is, as jax.ShapeDtypeStruct.
      weights_GK: float64; what a part gives no weight to is not read.
      names: of the groups.
      limit: bytes of a part on one device; a larger leaf is a part of its own.
    """
    scales_GK = base_scales(weights_GK)
    merged: dict[Path, jax.Array] = {}
    for part in _parts(target, limit):
        scales = {p: scales_GK[groups_of(p, names)] for p in leaves_by_path(part)}
        merged |= _merge_part(read, part, scales)
    leaves = [merged[path] for path in leaves_by_path(target)]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def _merge_part(
    read: Callable[[int, Params, Params | None], Params],
    part: Params,
    scales: dict[Path, np.ndarray],
) -> dict[Path, jax.Array]:
    """Returns the sum of one part; the arrays that it reads are gone after it."""
    first = read(0, part, None)
    base = leaves_by_path(first)
    total = {path: add_leaf(x, x, scales[path][:, 0]) for path, x in base.items()}
    weighed = np.concatenate(list(scales.values()))[:, 1:].any(axis=0)
    for k in np.flatnonzero(weighed) + 1:
        found = leaves_by_path(read(int(k), part, first))
        for path in base:
            leaf = found.pop(path)
            if scales[path][:, k].any():
                leaf = subtract_leaf(leaf, base[path])
                total[path] = add_leaf(total[path], leaf, scales[path][:, k])
            del leaf
        # Without the wait, the next policy could be on its way beside this one.
        jax.block_until_ready(total)
    return total


def base_scales(weights_GK: np.ndarray) -> np.ndarray:
    """Returns by what theta_0, and then each delta, are added to theta_0, float32."""
    scales_GK = weights_GK.astype(np.float32)
    scales_GK[:, 0] = weights_GK.sum(axis=1) - 1
    return scales_GK


def _parts(target: Params, limit: int) -> Iterator[Params]:
    """Yields trees of some of the leaves, in their order."""
    part: Params = {}
    for path, leaf in leaves_by_path(target).items():
        if part and bytes_on_device(part) + bytes_on_device(leaf) > limit:
            yield part
            part = {}
        put(part, path, leaf)
    yield part


def running_mean(models: Iterator[Params], weights: Iterable[float]) -> Params:
    """Returns the mean of trees in float32; two of them in memory at a time.

    >>> running_mean(iter([{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}]), [0.25, 0.75])
    {'w': Array([0.75, 0.75], dtype=float32)}

    Args:
      weights: above 0, one for each tree; their ratios count.
    """
    mean: list[jax.Array] = []
    total = 0.0
    for weight in weights:
        # Not by zip or enumerate, which hold on to the tree before; and leaf by leaf,
        # so that of the old mean no more is left than was not added to.
        leaves, structure = jax.tree.flatten(next(models))
        total += weight
        if not mean:
            mean = [x.astype(jnp.float32) for x in leaves]
            continue
        part = jnp.float32(weight / total)
        for k, x in enumerate(leaves):
            mean[k] = add_leaf(mean[k], subtract_leaf(x, mean[k]), part)
        del leaves
    return jax.tree.unflatten(structure, mean)


@functools.partial(jax.jit, static_argnames="dtype")
def signal_and_error(
    merged: jax.Array, base: jax.Array, dtype: str
) -> tuple[jax.Array, jax.Array]:
    """sum |merged - base| and sum |error of rounding merged to dtype|, of a leaf."""
    merged = merged.astype(jnp.float32)
    signal = jnp.sum(jnp.abs(merged - base.astype(jnp.float32)))
    if dtype == "float32":
        # Rounding to nearest errs by a quarter of the spacing on average.
        exponent = jnp.frexp(jnp.abs(merged))[1]
        error = jnp.ldexp(jnp.float32(1.0), exponent - 24) / 4
        return signal, jnp.sum(jnp.where(merged == 0, 0.0, error))
    # Not a cast and a cast back: XLA may leave both out, as excess precision.
    info = jnp.finfo(dtype)
    rounded = jax.lax.reduce_precision(merged, info.nexp, info.nmant)
    return signal, jnp.sum(jnp.abs(rounded - merged))


def signal_to_rounding(merged: Params, base: Params, dtype: str) -> float:
    """Returns sum |merged - base| / sum |error of rounding merged to dtype|.

    Far above 1 the merge is kept; near or below 1 a cast to ``dtype`` drowns it.
    Infinite where nothing is rounded.
    """
    leaves = zip(jax.tree.leaves(merged), jax.tree.leaves(base), strict=True)
    pairs = [signal_and_error(m, b, dtype) for m, b in leaves]
    signal, error = (sum(map(float, column)) for column in zip(*pairs))
    return signal / error if error > 0 else float("inf")
