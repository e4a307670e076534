"""The train step of LoRA: what it moves, and what batching may not change."""

import dataclasses

import jax
import numpy as np
import pytest

from tpmm_jax.losses import LossConfig
from tpmm_jax.models import Decoder, LoraConfig
from tpmm_jax.models.families import make_config
from tpmm_jax.models.lora import init_adapters
from tpmm_jax.steps import Frozen, TrainConfig, init_state, preference_step
from tpmm_jax.store import tree_digest

LORA = LoraConfig(rank=3, alpha=6.0, dropout=0.2)
DECODER = Decoder(
    make_config(
        "llama", vocab_size=29, width=12, mlp_width=10, num_layers=2, num_heads=2,
        num_kv_heads=1, head_dim=6, max_positions=32,
    ),
    lora=LORA, chunk_bytes=1 << 16,
)  # fmt: skip
B, T = 4, 9


@pytest.fixture(scope="module")
def base():
    return DECODER.init(jax.random.key(0))


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 29, (B, 2, T)).astype(np.int32)
    completion = np.zeros((B, 2, T), np.int32)
    completion[:, :, 4:] = 1
    return {
        "tokens_BNT": tokens,
        "mask_BNT": np.ones_like(tokens),
        "completion_mask_BNT": completion,
        "reference_BN": rng.normal(-15, 1, (B, 2)).astype(np.float32),
        "weight_B": np.ones(B, np.float32),
    }


def one_step(base, loss, accumulation, order=slice(None)):
    """(metrics, adapters) after two steps; the second one's gradients move A too."""
    config = TrainConfig(
        learning_rate=1e-2, batch_size=B, accumulation=accumulation, eps=1e-3
    )
    adapters = init_adapters(DECODER.abstract_params(), LORA, jax.random.key(1))
    state = init_state(adapters, config)
    step = preference_step(DECODER, loss, config)
    rows = {name: x[order] for name, x in batch().items()}
    for _ in range(2):
        frozen = Frozen(base, jax.random.key(2))
        state, metrics = step(state, rows, np.float32(1e-2), frozen)
    assert int(state.step) == 2
    return metrics, jax.device_get(state.params)


@pytest.mark.parametrize("name", ["dpo", pytest.param("aot", marks=pytest.mark.slow)])
def test_accumulation_and_order_change_nothing(base, name):
    """A loss of single pairs and one of the whole batch, dropout on."""
    loss = LossConfig(name=name)
    before = tree_digest(base)
    metrics, whole = one_step(base, loss, 1)
    other, split = one_step(base, loss, 2, slice(None, None, -1))
    assert tree_digest(base) == before
    for key in metrics:
        np.testing.assert_allclose(other[key], metrics[key], rtol=1e-4, atol=1e-5)
    start = init_adapters(DECODER.abstract_params(), LORA, jax.random.key(1))
    for x, y, z in zip(*map(jax.tree.leaves, (whole, split, start))):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)
        assert np.abs(x - np.asarray(z)).max() > 1e-5


def test_only_adapters_are_in_the_state(base):
    decoder = dataclasses.replace(DECODER, lora=LORA)
    structure = decoder.abstract_trained()
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/").rsplit("/", 1)[1]
        for path, _ in jax.tree_util.tree_leaves_with_path(structure)
    }
    assert names == {"a", "b"}
    total = sum(x.size for x in jax.tree.leaves(structure))
    rank, layers = 3, 2
    ends = [(12, 12), (12, 6), (12, 6), (12, 12), (12, 10), (12, 10), (10, 12)]
    assert total == layers * rank * sum(i + o for i, o in ends)
