"""The experts of a mixture merged back into one feed-forward, layer by layer.

    theta = s theta_shared + (1 - s) sum_i m_i theta_i,    m = softmax(b)

for each of gate, up and down, in float32, computed as

    theta_shared + (1 - s) sum_i m_i (theta_i - theta_shared)

so that experts that are still copies of one feed-forward give it back, bit for bit.
Layers without routed experts stay as they are.

Source: our reconstruction of UMM-RM (2512.00724).
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.data.table import Table, take
from tpmm_jax.errors import BadInput
from tpmm_jax.losses import Batch, pair_rewards, pair_rewards_and_aux
from tpmm_jax.losses.inputs import difference
from tpmm_jax.merging.trees import add_leaf, scale_leaf, subtract_leaf
from tpmm_jax.mesh import fetch, fill, put_batch
from tpmm_jax.models import Decoder, ModelConfig

# Pairs in one forward or backward pass.
MICRO_BATCH = 8


def dense_config(config: ModelConfig, name: str) -> ModelConfig:
    """Returns the architecture that a mixture is merged into.

    Raises:
      BadInput: its experts are no copies of one feed-forward that were trained.
    """
    experts = config.experts
    if experts is None:
        raise BadInput(
            f"{name} is dense: it has no experts to merge; wanted a reward model that "
            "tpmm upcycle, or a run of tpmm train_reward with experts.count, made a "
            "mixture"
        )
    unlike = (
        "its experts did not begin as copies of one feed-forward, and a weighted mean "
        "of unlike ones is no model"
    )
    if config.output == "tokens":
        raise BadInput(
            f"{name} is a policy, whose experts are not merged: {unlike}. Wanted an "
            "upcycled reward model"
        )
    if experts.shared is None:
        raise BadInput(
            f"{name} has no shared expert: {unlike}. Wanted a reward model that tpmm "
            "upcycle made a mixture"
        )
    return replace(config, experts=None)


def dense_decoder(decoder: Decoder, name: str = "the model") -> Decoder:
    """Returns what runs the merge, in float32; see ``dense_config``."""
    config = dense_config(decoder.config, name)
    return replace(decoder, config=config, compute_dtype="float32")


def merge_params(decoder: Decoder, params: Params, weights_LX: np.ndarray) -> Params:
    """Returns the dense model's parameters, float32, on the decoder's mesh.

    Args:
      decoder, params: the mixture.
      weights_LX: m of each layer that has routed experts.
    """
    mlp = merged_feed_forwards(
        decoder.config, params, jnp.asarray(weights_LX, jnp.float32)
    )
    dense = with_feed_forwards(params, mlp)
    dense = jax.tree.map(lambda x: x.astype(jnp.float32), dense)
    if decoder.mesh is None:
        return dense
    target = dense_decoder(decoder).abstract_params("float32")
    return jax.device_put(dense, jax.tree.map(lambda x: x.sharding, target))


def pair_margins(
    decoder: Decoder,
    params: Params,
    table: Table,
    advance: Callable[[int], None] = lambda pairs: None,
) -> np.ndarray:
    """Returns r(chosen) - r(rejected) of every pair, float64 [P]."""
    found = []
    for batch, size in micro_batches(decoder, table):
        margin_B = fetch(_margin(decoder, params, batch)).astype(np.float64)
        found.append(margin_B[:size])
        advance(size)
    return np.concatenate(found)


def micro_batches(decoder: Decoder, table: Table) -> Iterator[tuple[Batch, int]]:
    """Yields (batch, its pairs), filled up to MICRO_BATCH."""
    count, filled = len(table["weight_B"]), fill(decoder.mesh, MICRO_BATCH, sides=2)
    for start in range(0, count, MICRO_BATCH):
        places = np.arange(start, min(start + MICRO_BATCH, count))
        yield put_batch(take(table, places, filled), decoder.mesh), len(places)


@functools.partial(jax.jit, static_argnames="decoder")
def _margin(decoder: Decoder, params: Params, batch: Batch) -> jax.Array:
    return difference(pair_rewards(decoder, params, batch))


@functools.partial(jax.jit, static_argnames="decoder")
def gate_sums(decoder: Decoder, params: Params, batch: Batch) -> jax.Array:
    """Gate probabilities [layers with experts, X], summed over the real tokens."""
    experts = decoder.config.experts
    assert experts is not None
    aux = pair_rewards_and_aux(decoder, params, batch)[1]
    sides = batch["tokens_BNT"].shape[1]
    real_B = jnp.repeat((batch["weight_B"] > 0).astype(jnp.float32), sides)
    sums = jnp.einsum("B,LBX->LX", real_B, aux["probability_BX"])
    return sums[jnp.asarray(experts.places(decoder.config.num_layers))]


@functools.partial(jax.jit, static_argnames="config")
def merged_feed_forwards(
    config: ModelConfig, params: Params, weights_LX: jax.Array
) -> Params:
    """Returns the merged feed-forwards of all layers, float32."""
    experts = config.experts
    assert experts is not None and experts.shared is not None
    places, found = jnp.asarray(experts.places(config.num_layers)), {}
    for name, all_layers in params["layers"]["mlp"].items():
        shared = all_layers.astype(jnp.float32)
        base = shared[places]
        moved = subtract_leaf(params["experts"][name], base[:, None])
        step = jnp.sum(scale_leaf(moved, weights_LX), axis=1)
        whole = add_leaf(base, step, jnp.float32(1 - experts.shared))
        found[name] = shared.at[places].set(whole)
    return found


def with_feed_forwards(params: Params, mlp: Params) -> Params:
    """The parameters with other feed-forwards, without experts."""
    rest = {name: x for name, x in params.items() if name != "experts"}
    return rest | {"layers": params["layers"] | {"mlp": mlp}}
