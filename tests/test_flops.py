"""The count of operations against one made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tpmm_jax.losses import LossConfig
from tpmm_jax.mesh import BATCH, MeshConfig, make_mesh
from tpmm_jax.models import Decoder, ExpertsConfig
from tpmm_jax.models.experts import standing_for
from tpmm_jax.models.families import make_config
from tpmm_jax.models.published import SIZES
from tpmm_jax.steps import TrainConfig, abstract_state, preference_step
from tpmm_jax.steps.flops import count_flops

PAIRS, LENGTH = 4, 64
TRAIN = TrainConfig(learning_rate=1e-3)


def train_flops(decoder: Decoder) -> float:
    state = abstract_state(decoder.abstract_trained(), TRAIN)
    whole = jax.ShapeDtypeStruct((PAIRS, 2, LENGTH), jnp.int32)
    batch = {name: whole for name in ("tokens_BNT", "mask_BNT", "completion_mask_BNT")}
    batch["weight_B"] = jax.ShapeDtypeStruct((PAIRS,), jnp.float32)
    batch["reference_BN"] = jax.ShapeDtypeStruct((PAIRS, 2), jnp.float32)
    step = preference_step(decoder, LossConfig(), TRAIN)
    return count_flops(lambda s, b: step(s, b, 1e-3, frozen=None), state, batch)


def by_hand(decoder: Decoder, *, remat: bool) -> float:
    """Each matrix once forward and twice backward; the head's logits once more."""
    c, tokens = decoder.config, PAIRS * 2 * LENGTH
    attention = c.width * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    layer = 2 * (attention + 3 * c.width * c.mlp_width)
    # Scores and their use, of every token with every other.
    layer += 2 * 2 * LENGTH * c.num_heads * c.head_dim
    # Made again for the backward pass: all but what the layer's last product gives.
    again = layer - 2 * c.width * c.mlp_width if remat else 0
    head = 2 * c.vocab_size * c.width * tokens * (LENGTH - 1) / LENGTH
    return c.num_layers * (3 * layer + again) * tokens + 4 * head


@pytest.mark.parametrize("name", ["gemma-2b", "llama3-8b", "qwen3-0.6b"])
@pytest.mark.parametrize("remat", [False, True])
def test_a_step_has_the_operations_of_a_count_by_hand(name: str, remat: bool) -> None:
    # One block of the vocabulary: others may overlap.
    decoder = Decoder(SIZES[name], remat=remat, chunk_bytes=2**40)
    wanted = by_hand(decoder, remat=remat)
    assert train_flops(decoder) == pytest.approx(wanted, rel=0.02)


def test_a_scan_counts_as_often_as_it_runs() -> None:
    x = jnp.zeros((4, 4))

    def run(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=7)[0]

    assert count_flops(run, x) == 7 * 2 * 4**3
    branches = [lambda x: x, lambda x: x @ x]
    chosen = count_flops(lambda i, x: jax.lax.switch(i, branches, x), np.int32(0), x)
    assert chosen == 2 * 4**3


def test_products_of_groups_and_programs_of_each_device() -> None:
    x, w, sizes = jnp.zeros((32, 8)), jnp.zeros((4, 8, 16)), jnp.full(4, 8)

    def grouped(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(jax.lax.ragged_dot(x, w, sizes))

    product = 2 * 32 * 8 * 16
    assert count_flops(grouped, x, w) == product
    assert count_flops(jax.grad(grouped, argnums=(0, 1)), x, w) == 3 * product
    mesh = make_mesh(MeshConfig(data=4, fsdp=1, expert=2))
    rows, whole = PartitionSpec(BATCH), PartitionSpec()
    each = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(rows, whole), out_specs=rows
    )
    # The devices of EXPERT have the same rows.
    assert count_flops(each, x, w[0]) == product


def test_a_mixture_multiplies_by_the_experts_that_a_token_takes() -> None:
    config = make_config(
        "mixtral", vocab_size=64, width=64, mlp_width=128, num_layers=2,
        num_heads=4, num_kv_heads=2, experts=ExpertsConfig(count=8, top_k=2),
    )  # fmt: skip
    dense = make_config(
        "llama", vocab_size=64, width=64, mlp_width=256, num_layers=2, num_heads=4,
        num_kv_heads=2, tie_embeddings=False,
    )  # fmt: skip
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, expert=2))
    with standing_for("gpu"):
        found = train_flops(Decoder(config, remat=False, mesh=mesh))
    wanted = train_flops(Decoder(dense, remat=False))
    # Two experts of half its width, and a router.
    assert found == pytest.approx(wanted, rel=0.02)
