"""The count of operations against one made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.losses import LossConfig
from tpmm_jax.models import Decoder
from tpmm_jax.models.published import SIZES
from tpmm_jax.steps import TrainConfig, abstract_state, preference_step
from tpmm_jax.steps.flops import count_flops

PAIRS, LENGTH = 4, 64
TRAIN = TrainConfig(learning_rate=1e-3)


def train_flops(decoder: Decoder) -> float:
    state = abstract_state(decoder.abstract_trained(), TRAIN, None)
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
