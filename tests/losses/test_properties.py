"""What may not change a log-prob, a margin or a gradient: drawn cases, few compiles."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tpmm_jax.losses import (
    LossConfig,
    coupled_gradients,
    coupled_loss,
    gradients,
    init_loss_state,
    log_probs,
    preference_loss,
)
from tpmm_jax.mesh import MeshConfig, make_mesh, put_batch
from tpmm_jax.models import Decoder, from_mask
from tpmm_jax.models.families import make_config
from tpmm_jax.steps import shardings

CONFIG = make_config(
    "gemma", vocab_size=307, width=16, mlp_width=24, num_layers=2, num_heads=4,
    num_kv_heads=1, head_dim=8, max_positions=64,
)  # fmt: skip
B, T, LONG = 8, 13, 24
DECODER = Decoder(CONFIG, remat=False, chunk_bytes=1000)
few = settings(max_examples=12, deadline=None, derandomize=True, database=None)


@functools.cache
def params_on(sizes=None):
    """The decoder, on a mesh of (data, fsdp, tensor), and the same parameters."""
    params = jax.device_get(DECODER.init(jax.random.key(4)))
    if sizes is None:
        return DECODER, jax.tree.map(jnp.asarray, params)
    mesh = make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes))))
    decoder = Decoder(CONFIG, remat=False, mesh=mesh)
    where = shardings(decoder.abstract_params("float32"))
    return decoder, jax.device_put(params, where)


@functools.cache
def runner(chunk_bytes, sizes):
    decoder = dataclasses.replace(params_on(sizes)[0], chunk_bytes=chunk_bytes)

    @jax.jit
    def run(params, tokens, mask):
        return log_probs(decoder, params, from_mask(tokens, mask))

    return run


def token_log_probs(tokens, mask, chunk_bytes=1 << 20, sizes=None):
    decoder, params = params_on(sizes)
    batch = put_batch((tokens, mask), decoder.mesh)
    return np.asarray(runner(chunk_bytes, sizes)(params, *batch), np.float64)


def assert_same_log_probs(found, wanted, mask):
    """Each token within 1e-5, and each sum over T within 1e-5 sqrt(T) + 1e-6 |sum|."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    a, b = found.sum(axis=1), wanted.sum(axis=1)
    assert (np.abs(a - b) <= 1e-5 * np.sqrt(mask.sum(axis=1)) + 1e-6 * np.abs(b)).all()


@st.composite
def rows(draw):
    """Tokens and mask [B, T], right-padded to drawn lengths."""
    lengths = draw(st.lists(st.integers(2, T), min_size=B, max_size=B))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = (np.arange(T) < np.asarray(lengths)[:, None]).astype(np.int32)
    return rng.integers(0, 307, (B, T)).astype(np.int32), mask


@few
@given(rows(), st.integers(0, LONG - T), st.permutations(range(B)), st.data())
def test_padding_chunks_order_and_mesh_change_no_log_prob(case, shift, order, data):
    tokens, mask = case
    wanted = token_log_probs(tokens, mask)
    # Padding on both sides, of ids that the model knows.
    rng = np.random.default_rng(shift)
    long_tokens = rng.integers(0, 307, (B, LONG)).astype(np.int32)
    long_mask = np.zeros((B, LONG), np.int32)
    long_tokens[:, shift : shift + T] = np.where(mask, tokens, long_tokens[:, :T])
    long_mask[:, shift : shift + T] = mask
    found = token_log_probs(long_tokens, long_mask)[:, shift : shift + T - 1]
    assert_same_log_probs(found, wanted, mask)
    assert_same_log_probs(token_log_probs(tokens, mask, 1), wanted, mask)
    turned = token_log_probs(tokens[list(order)], mask[list(order)])
    assert_same_log_probs(turned, wanted[list(order)], mask[list(order)])
    sizes = data.draw(st.sampled_from([(2, 2, 2), (1, 8, 1)]))
    assert_same_log_probs(token_log_probs(tokens, mask, sizes=sizes), wanted, mask)


def batch_of(case, seed):
    """Pairs [B / 2, N, T] of the rows, prompts of one token."""
    tokens, mask = (x.reshape(B // 2, 2, T) for x in case)
    rng = np.random.default_rng(seed)
    return {
        "tokens_BNT": tokens,
        "mask_BNT": mask,
        "completion_mask_BNT": (mask * (np.arange(T) >= 1)).astype(np.int32),
        "reference_BN": rng.normal(-15, 3, (B // 2, 2)).astype(np.float32),
        "weight_B": np.asarray([1, 1, 1, seed % 2], np.float32),
        "margin_B": rng.normal(0, 3, B // 2).astype(np.float32),
    }


COUPLED = LossConfig(name=["aot", "aot_unpaired", "beta_dpo", "dr_dpo", "sft", "sppo"])
PLAIN = LossConfig(name=["dpo", "sft", "nca", "madpo"], weights=[1.0, 0.5, 0.25, 1.0])


@functools.cache
def gradient_step(config, accumulation):
    if config.coupled:
        loss = coupled_loss(DECODER, config.objective())
        state = init_loss_state(config)

        def run(params, batch):
            return coupled_gradients(loss, params, batch, state, accumulation, None)

    else:
        loss = preference_loss(DECODER, config.objective())

        def run(params, batch):
            return *gradients(loss, params, batch, accumulation, None), ()

    return jax.jit(run)


def norm(tree):
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.sqrt(sum((x**2).sum() for x in leaves))


@few
@given(rows(), st.integers(0, 1000), st.sampled_from([COUPLED, PLAIN]))
def test_micro_batches_change_no_gradient(case, seed, config):
    _, params = params_on()
    batch = jax.tree.map(jnp.asarray, batch_of(case, seed))
    grads, loss, metrics, state = gradient_step(config, 1)(params, batch)
    found = gradient_step(config, 2)(params, batch)
    difference = jax.tree.map(lambda a, b: np.subtract(a, b), found[0], grads)
    assert norm(difference) <= 3e-6 * norm(grads)
    np.testing.assert_allclose(found[1], loss, rtol=2e-6, atol=1e-6)
    for name, value in metrics.items():
        np.testing.assert_allclose(found[2][name], value, rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(found[3]), jax.tree.leaves(state)):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@few
@given(rows(), st.integers(0, 1000))
def test_swapping_a_pair_flips_its_margin(case, seed):
    _, params = params_on()
    batch = batch_of(case, seed)
    swapped = {
        name: x if name in ("weight_B", "margin_B") else x[:, ::-1].copy()
        for name, x in batch.items()
    }
    margins = [
        gradient_step(PLAIN, 1)(params, jax.tree.map(jnp.asarray, some))[2]
        for some in (batch, swapped)
    ]
    np.testing.assert_allclose(
        margins[0]["rewards/margins"], -margins[1]["rewards/margins"], rtol=1e-5,
        atol=1e-6,
    )  # fmt: skip
