"""Low-rank adapters: trained inside the layers, a dense tree everywhere else.

    y = x W + s (drop(x) A) B,    theta = W + s A B,    s = alpha / r

An adapter is a nested dict like the parameters, {"a", "b"} in the place of a matrix.
A keeps the matrix's input axes and B its output axes, so that heads stay heads:
[L, D, H, E] has A [L, D, r] and B [L, r, H, E].

Source: LoRA (2106.09685) eq. 3; s = alpha / sqrt(r): rsLoRA (2312.03732).
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt32

from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput, nearest
from tpmm_jax.models.sequences import Sequences

ALL_LINEAR = "all-linear"


class Target(NamedTuple):
    """A matrix that can be adapted: its path, and how many of its axes are inputs."""

    path: tuple[str, ...]
    inputs: int


# Under the names that Hugging Face's models and PEFT use.
TARGETS = {
    "q_proj": Target(("layers", "attention", "query"), 1),
    "k_proj": Target(("layers", "attention", "key"), 1),
    "v_proj": Target(("layers", "attention", "value"), 1),
    "o_proj": Target(("layers", "attention", "output"), 2),
    "gate_proj": Target(("layers", "mlp", "gate"), 1),
    "up_proj": Target(("layers", "mlp", "up"), 1),
    "down_proj": Target(("layers", "mlp", "down"), 1),
}

# What a tree of adapters holds as it is, trained whole: a reward model's head.
WHOLE = ("score",)

# Above the width of any model that runs; what lies beyond is a slip.
MOST_RANK = 2**16


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adaptation of the policy; the weights themselves stay fixed.

    Attributes:
      rank: r; 0 trains all weights instead. 8 to 64 is usual.
      alpha: numerator of the scale, which is alpha / rank.
      targets: "all-linear", or names with commas between them: q_proj, k_proj,
        v_proj, o_proj, gate_proj, up_proj, down_proj.
      dropout: share of an adapter's inputs that are zeroed in training.
      rslora: scale by alpha / sqrt(rank) instead (2312.03732).
    """

    rank: int = 0
    alpha: float = 32.0
    targets: str = ALL_LINEAR
    dropout: float = 0.0
    rslora: bool = False

    def validate(self, name: str = "model.lora") -> None:
        """Raises BadInput for a value out of range, or one that nothing would read."""
        if not 0 <= self.rank <= MOST_RANK:
            raise BadInput(
                f"{name}.rank is {self.rank:,}; use at least 1 and at most "
                f"{MOST_RANK:,}, or 0: no LoRA"
            )
        if self.rank == 0:
            for f in fields(self):
                if getattr(self, f.name) != f.default:
                    raise BadInput(
                        f"{name}.{f.name} is {getattr(self, f.name)!r}, but LoRA "
                        f"is off: {name}.rank is 0; set the rank (16 is usual)"
                    )
        if not 0 < self.alpha < math.inf:
            raise BadInput(
                f"{name}.alpha is {self.alpha}; use a positive, finite number"
            )
        if not 0 <= self.dropout < 1:
            raise BadInput(f"{name}.dropout is {self.dropout}; use a number in [0, 1)")
        targets(self, name)


class Adapted(NamedTuple):
    """Parameters in two parts, for ``Decoder.hidden`` and the losses.

    Attributes:
      base: the fixed weights.
      adapters: what is trained.
      dropout_key: of this step; None: no dropout.
    """

    base: Params
    adapters: Params
    dropout_key: Any = None


def targets(config: LoraConfig, name: str = "model.lora") -> dict[str, Target]:
    """Returns the adapted matrices, in the order of TARGETS.

    Raises:
      BadInput: an unknown name; the nearest are listed.
    """
    if config.targets.strip() == ALL_LINEAR:
        return dict(TARGETS)
    wanted = [part.strip() for part in config.targets.split(",")]
    for part in wanted:
        if part not in TARGETS:
            raise BadInput(
                f"{name}.targets: {part!r} is not a matrix that can be adapted"
                + nearest(part, [ALL_LINEAR, *TARGETS])
            )
    return {part: TARGETS[part] for part in TARGETS if part in wanted}


def scaling(config: LoraConfig) -> float:
    """Returns s: alpha / r, or alpha / sqrt(r) for rsLoRA."""
    return config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)


def get(tree: Params, path: tuple[str, ...]) -> Any:
    """Returns what lies at a path."""
    for key in path:
        tree = tree[key]
    return tree


def put(tree: Params, path: tuple[str, ...], value: Any) -> None:
    """Sets what lies at a path, making the dicts on the way."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def placed(tree: Params) -> Iterator[tuple[Target, Params]]:
    """Yields (target, its {"a", "b"}) of every adapter of a tree."""
    for target in TARGETS.values():
        try:
            yield target, get(tree, target.path)
        except KeyError:
            continue


def abstract_adapters(base: Params, config: LoraConfig) -> Params:
    """Returns the shapes, dtypes and shardings of the adapters, float32.

    A reward model's head is among them, whole.

    Args:
      base: abstract parameters; an adapter's axes lie as its matrix's do, and the
        rank is replicated.
    """
    adapters: Params = {}
    for name, target in targets(config).items():
        try:
            leaf, split = get(base, target.path), 1 + target.inputs
        except KeyError:
            # "all-linear" of a mixture of experts is what it has beside them.
            if config.targets.strip() == ALL_LINEAR:
                continue
            raise BadInput(
                f"lora.targets names {name}, which this model does not have: its "
                "feed-forwards are routed experts, which LoRA does not adapt"
            ) from None
        a = _part(leaf, [*range(split), None], config.rank)
        b = _part(leaf, [0, None, *range(split, leaf.ndim)], config.rank)
        put(adapters, target.path, {"a": a, "b": b})
    for name in WHOLE:
        if name in base:
            where, shape = base[name].sharding, base[name].shape
            adapters[name] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)
    return adapters


def _part(leaf: Any, axes: Sequence[int | None], rank: int) -> jax.ShapeDtypeStruct:
    """Returns an array of some axes of a matrix; None stands for the rank's."""
    where = leaf.sharding
    if isinstance(where, NamedSharding):
        spec: dict[Any, Any] = dict(enumerate(where.spec))
        where = NamedSharding(where.mesh, PartitionSpec(*map(spec.get, axes)))
    shape = [rank if axis is None else leaf.shape[axis] for axis in axes]
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)


def init_adapters(
    base: Params, config: LoraConfig, key: jax.Array, **whole: jax.Array
) -> Params:
    """Returns adapters whose product is zero.

        A ~ U(-1/sqrt(n), 1/sqrt(n)), n the number of inputs;  B = 0

    Args:
      base: abstract parameters.
      whole: what the leaves that are trained whole begin with, by name (see WHOLE).
    """
    abstract = abstract_adapters(base, config)
    low_rank = {name: x for name, x in abstract.items() if name not in WHOLE}
    assert whole.keys() == abstract.keys() - low_rank.keys()

    def make(key: jax.Array) -> Params:
        adapters: Params = {}
        for number, (target, pair) in enumerate(placed(abstract)):
            bound = math.prod(pair["a"].shape[1:-1]) ** -0.5
            own = jax.random.fold_in(key, number)
            a = jax.random.uniform(own, pair["a"].shape, jnp.float32, -bound, bound)
            b = jnp.zeros(pair["b"].shape, jnp.float32)
            put(adapters, target.path, {"a": a, "b": b})
        return adapters

    where = jax.tree.map(lambda x: x.sharding, low_rank)
    # Copies: what is trained is donated, and the base goes on being read.
    return jax.jit(make, out_shardings=where)(key) | jax.tree.map(jnp.copy, whole)


def merge_adapters(base: Params, adapters: Params, config: LoraConfig) -> Params:
    """Returns W + s A B in float32, on W's shardings; other leaves are base's own.

    A leaf that is trained whole takes the base's place.

    The sum over the rank is in a fixed order and elementwise else, so that the bits
    do not depend on the mesh. A product of zero leaves W's bits.
    """
    merged = jax.tree.map(lambda x: x, base)
    for target, pair in placed(adapters):
        leaf = get(base, target.path)
        out = _merge_leaf(leaf, pair["a"], pair["b"], target.inputs, scaling(config))
        put(merged, target.path, jax.device_put(out, leaf.sharding))
    return merged | {name: adapters[name] for name in WHOLE if name in adapters}


# Terms of the sum over the rank that are added in one pass over the matrix.
_UNROLL = 8


@functools.partial(jax.jit, static_argnames=("inputs", "scale"))
def _merge_leaf(
    w: jax.Array, a: jax.Array, b: jax.Array, inputs: int, scale: float
) -> Float[Array, "..."]:
    outputs = w.ndim - 1 - inputs

    def term(i: jax.Array) -> jax.Array:
        left = jax.lax.dynamic_index_in_dim(a, i, axis=-1, keepdims=False)
        right = jax.lax.dynamic_index_in_dim(b, i, axis=1, keepdims=False)
        left = left.reshape(left.shape + (1,) * outputs)
        return left * right.reshape(right.shape[:1] + (1,) * inputs + right.shape[1:])

    product = jax.lax.fori_loop(
        0,
        a.shape[-1],
        lambda i, total: total + term(i),
        jnp.zeros(w.shape, jnp.float32),
        unroll=min(_UNROLL, a.shape[-1]),
    )
    w32 = w.astype(jnp.float32)
    # -0.0 + 0.0 would be 0.0.
    return jnp.where(product == 0, w32, w32 + scale * product)


def variables(
    params: Adapted,
    config: LoraConfig,
    sequences: Sequences,
) -> Params:
    """Returns the collection that the layers read: A, s B and, for dropout, keys.

    A row's dropout is drawn by its own tokens, the layer and the matrix, so that it
    depends neither on the batch around it nor on how a batch is split.
    """
    keys_B = None
    if params.dropout_key is not None and config.dropout > 0:
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        keys_B = fold(params.dropout_key, row_hash(sequences))
    collection: Params = {}
    for number, (target, pair) in enumerate(placed(params.adapters)):
        entry = {"a": pair["a"], "b": scaling(config) * pair["b"]}
        if keys_B is not None:
            layers = pair["a"].shape[0]
            place_L = number * layers + jnp.arange(layers)
            fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))
            entry["key"] = jax.random.key_data(fold(keys_B, place_L))
            entry["keep"] = jnp.full((layers,), 1.0 - config.dropout, jnp.float32)
        put(collection, target.path, entry)
    return collection


def row_hash(sequences: Sequences) -> UInt32[Array, " B"]:
    """Returns a number for each row's tokens and their places, mod 2^32."""
    tokens_BT, _, segments_BT = sequences
    place_T = jnp.arange(tokens_BT.shape[1], dtype=jnp.uint32)
    odd_T = (place_T * np.uint32(0x9E3779B1)) ^ np.uint32(0x85EBCA6B)
    odd_T = (odd_T ^ (odd_T >> np.uint32(15))) | np.uint32(1)
    real_BT = (tokens_BT.astype(jnp.uint32) + 1) * (segments_BT > 0).astype(jnp.uint32)
    return jnp.sum(real_BT * odd_T, axis=1, dtype=jnp.uint32)


def drop(
    x_BT: Float[Array, "B T ..."], keys_B: jax.Array, keep: jax.Array
) -> Float[Array, "B T ..."]:
    """Zeroes a share 1 - keep of each row's numbers and divides the others by keep."""

    def mask(data: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(data)
        return jax.random.bernoulli(key, keep, x_BT.shape[1:])

    kept = jnp.where(jax.vmap(mask)(keys_B), x_BT.astype(jnp.float32) / keep, 0.0)
    return kept.astype(x_BT.dtype)
