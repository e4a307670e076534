"""The jitted steps: what batching may not change, and AdamW in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.errors import BadInput
from tpmm_jax.losses import LossConfig, gradients, loss_at_zero, preference_loss
from tpmm_jax.models import Decoder, from_mask
from tpmm_jax.models.families import make_config
from tpmm_jax.steps import (
    TrainConfig,
    init_state,
    is_matrix,
    language_model_loss,
    make_learning_rate,
    pair_check_step,
    pair_log_probs_step,
    preference_step,
)

CONFIG = make_config(
    "llama", vocab_size=23, width=10, mlp_width=13, num_layers=2, num_heads=3,
    num_kv_heads=1, head_dim=4, max_positions=64,
)  # fmt: skip
DECODER = Decoder(CONFIG, chunk_bytes=500)


def pairs(B, T=9, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, T + 1, (B, 2, 1))
    mask = (np.arange(T) < lengths).astype(np.int32)
    return {
        "tokens_BNT": rng.integers(0, 23, (B, 2, T)).astype(np.int32),
        "mask_BNT": mask,
        "completion_mask_BNT": (mask * (np.arange(T) >= 2)).astype(np.int32),
        "reference_BN": rng.normal(-15, 3, (B, 2)).astype(np.float32),
        "weight_B": np.ones(B, np.float32),
    }


@functools.cache
def initial():
    return jax.device_get(DECODER.init(jax.random.key(1)))


@functools.cache
def gradients_of(accumulation):
    loss_fn = preference_loss(DECODER, LossConfig().objective())
    return jax.jit(lambda p, b: gradients(loss_fn, p, b, accumulation, None))


def run_gradients(batch, accumulation):
    batch = jax.tree.map(jnp.asarray, batch)
    return jax.device_get(gradients_of(accumulation)(initial(), batch))


def norm(tree):
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.sqrt(sum((x**2).sum() for x in leaves))


@functools.cache
def rounding():
    """How far half a unit in the last place of each weight moves the gradient.

    It is the least by which two float32 programs of one gradient may differ: what a
    processor's vector width rounds differently in a forward pass is of that size. Seen
    here: 1.5e-6 to 1.7e-6 of the gradient's norm, and up to 1.6e-6 between programs.
    """
    batch, rng = jax.tree.map(jnp.asarray, pairs(6)), np.random.default_rng(0)
    gradient = gradients_of(1)

    def moved(x):
        return (x * (1 + rng.uniform(-(2**-24), 2**-24, x.shape))).astype(np.float32)

    exact = jax.device_get(gradient(initial(), batch)[0])
    found = []
    for _ in range(4):
        other = jax.device_get(gradient(jax.tree.map(moved, initial()), batch)[0])
        found.append(norm(jax.tree.map(np.subtract, other, exact)) / norm(exact))
    return max(found)


def assert_same(found, wanted, relative=1e-6):
    difference = jax.tree.map(np.subtract, found[0], wanted[0])
    # Both sides are rounded.
    assert norm(difference) <= max(relative, 2 * rounding()) * norm(wanted[0])
    np.testing.assert_allclose(found[1], wanted[1], rtol=relative)
    for name, value in wanted[2].items():
        np.testing.assert_allclose(found[2][name], value, rtol=relative, atol=1e-6)


@pytest.mark.parametrize("accumulation", [2, 3])
def test_accumulation_is_one_batch(accumulation):
    batch = pairs(6)
    assert_same(run_gradients(batch, accumulation), run_gradients(batch, 1))


def test_rows_of_weight_zero_change_nothing():
    batch = pairs(5)
    filler = pairs(1, seed=9)
    filler["weight_B"] = np.zeros(1, np.float32)
    filler["reference_BN"] *= 100
    filled = {name: np.concatenate([x, filler[name]]) for name, x in batch.items()}
    wanted = run_gradients(batch, 1)
    for accumulation in (1, 2):
        assert_same(run_gradients(filled, accumulation), wanted)


def test_a_batch_of_filler_only_has_zero_gradient():
    batch = pairs(6)
    batch["weight_B"] = np.zeros(6, np.float32)
    grads, loss, _ = run_gradients(batch, 2)
    assert loss == 0 and not any(x.any() for x in jax.tree.leaves(grads))


def test_order_of_pairs_changes_nothing():
    batch = pairs(6)
    turned = {name: x[::-1].copy() for name, x in batch.items()}
    assert_same(run_gradients(turned, 1), run_gradients(batch, 1))


def test_swapping_the_pair_flips_the_margin():
    batch = pairs(6)
    swapped = {
        name: x if name == "weight_B" else x[:, ::-1].copy()
        for name, x in batch.items()
    }
    _, _, a = run_gradients(batch, 1)
    _, _, b = run_gradients(swapped, 1)
    np.testing.assert_allclose(a["rewards/margins"], -b["rewards/margins"], rtol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing_nor_does_the_next():
    state, step = start(train_config())
    good, bad = jax.tree.map(jnp.asarray, pairs(6)), jax.tree.map(jnp.asarray, pairs(6))
    bad["reference_BN"] = bad["reference_BN"].at[3, 1].set(-jnp.inf)
    state, _ = step(state, good, 0.1)
    before = jax.device_get(state)
    for batch in (bad, good):
        state, metrics = step(state, batch, 0.1)
        assert int(state.step) == -2
        for a, b in zip(jax.tree.leaves(before[:2]), jax.tree.leaves(state[:2])):
            np.testing.assert_array_equal(a, b)
    assert np.isfinite(metrics["loss"])


def train_config(**changes):
    values = dict(learning_rate=1e-2, batch_size=4, warmup_fraction=0.0)
    return TrainConfig(**{**values, **changes})


def start(config):
    params = jax.tree.map(jnp.array, initial())
    step = preference_step(DECODER, LossConfig(), config)
    return init_state(params, config), step


def test_the_state_is_donated_and_the_rate_is_no_constant():
    state, step = start(train_config())
    batch = jax.tree.map(jnp.asarray, pairs(6))
    for rate in (0.1, 0.2):
        new, _ = step(state, batch, rate)
        assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
        assert not any(x.is_deleted() for x in jax.tree.leaves(new))
        state = new
    assert int(state.step) == 2 and step.func._cache_size() == 1


def test_a_sweep_over_beta_compiles_once_and_without_smoothing_anew():
    batch, config = jax.tree.map(jnp.asarray, pairs(6)), train_config(b1=0.875)
    losses = {}
    for beta, eps, programs in ((0.1, 0.0, 1), (0.2, 0.0, 1), (0.1, 0.1, 2)):
        loss = LossConfig(name="aot", beta=beta, label_smoothing=eps)
        step = preference_step(DECODER, loss, config)
        state = init_state(jax.tree.map(jnp.array, initial()), config)
        _, metrics = step(state, batch, 0.1)
        losses[beta, eps] = float(metrics["loss"])
        assert step.func._cache_size() == programs
    assert len(set(losses.values())) == 3


def test_adamw_in_numpy():
    """Two steps with clipping and decay, from the gradients, in float64."""
    config = train_config(weight_decay=0.3, max_grad_norm=0.01, eps=1e-3)
    state, step = start(config)
    x = jax.tree.map(lambda p: p.astype(np.float64), initial())
    m = v = jax.tree.map(np.zeros_like, x)
    for t in (1, 2):
        batch = jax.tree.map(jnp.asarray, pairs(6, seed=t))
        grads = jax.device_get(gradients_of(1)(jax.device_get(state.params), batch))[0]
        state, metrics = step(state, batch, 0.02)
        np.testing.assert_allclose(metrics["grad_norm"], norm(grads), rtol=1e-6)
        assert norm(grads) > 0.01
        clip = 0.01 / (norm(grads) + 1e-6)
        grads = jax.tree.map(lambda g, c=clip: np.float64(g) * c, grads)
        m = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g, m, grads)
        v = jax.tree.map(lambda a, g: 0.999 * a + 0.001 * g**2, v, grads)

        def update(path, p, a, b, t=t):
            decay = 0.0 if path[-1].key == "scale" else 0.3
            adam = (a / (1 - 0.9**t)) / (np.sqrt(b / (1 - 0.999**t)) + 1e-3)
            return p - 0.02 * (adam + decay * p)

        x = jax.tree_util.tree_map_with_path(update, x, m, v)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(x)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", [LossConfig(), LossConfig(name="ipo")])
def test_check_step_shifts_and_swaps(loss):
    batch = jax.tree.map(jnp.asarray, pairs(6))
    params = initial()
    batch["reference_BN"] = pair_log_probs_step(DECODER, params, batch)
    for shift, swap, wanted in ((0, False, 0), (1, False, -1), (1, True, 1)):
        margin, value = pair_check_step(
            DECODER, loss.objective(), params, batch, jnp.float32(shift),
            jnp.asarray(swap),
        )  # fmt: skip
        np.testing.assert_allclose(margin, wanted, rtol=0, atol=1e-4)
        if shift == 0:
            np.testing.assert_allclose(value, loss_at_zero(loss.objective()), rtol=1e-3)


def numpy_schedule(kind, step, total, warmup, peak):
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    shapes = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1 + np.cos(np.pi * done)),
    }
    return peak * shapes[kind]


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(
    "total, fraction", [(1, 0.0), (1, 0.9), (7, 0.0), (10, 0.1), (20, 0.25), (3, 0.5)]
)
def test_schedules(kind, total, fraction):
    config = train_config(schedule=kind, warmup_fraction=fraction, learning_rate=3e-4)
    rate, warmup = make_learning_rate(config, total), round(fraction * total)
    for step in range(total + 2):
        wanted = numpy_schedule(kind, step, total, warmup, 3e-4)
        np.testing.assert_allclose(float(rate(step)), wanted, rtol=1e-5, atol=1e-12)
        assert step >= total or kind == "constant" or float(rate(step)) > 0


def test_language_model_loss_is_the_mean_a_token():
    params = initial()
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 23, (4, 9)), jnp.int32)
    mask = jnp.asarray(np.arange(9) < np.asarray([9, 4, 2, 1])[:, None], jnp.int32)
    batch = {
        "tokens_BT": tokens,
        "mask_BT": mask,
        "weight_B": jnp.asarray([8.0, 3.0, 1.0, 0.0]),
    }
    loss_fn = language_model_loss(DECODER)
    run = jax.jit(gradients, static_argnums=(0, 3, 4))
    _, loss, _ = run(loss_fn, params, batch, 2, None)
    logits = jax.jit(
        lambda p: DECODER.logits(p, DECODER.hidden(p, from_mask(tokens, mask)))
    )(params)
    logp = np.asarray(jax.nn.log_softmax(logits))[:, :-1]
    picked = np.take_along_axis(logp, np.asarray(tokens)[:, 1:, None], -1)[..., 0]
    wanted = -(picked * np.asarray(mask)[:, 1:]).sum() / 12
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        dict(epochs=0), dict(batch_size=0), dict(accumulation=0),
        dict(batch_size=8, accumulation=3), dict(learning_rate=0.0),
        dict(learning_rate=float("nan")), dict(learning_rate=float("inf")),
        dict(warmup_fraction=1.0), dict(warmup_fraction=-0.1), dict(weight_decay=-1.0),
        dict(b1=1.0), dict(b2=-0.1), dict(eps=0.0), dict(max_grad_norm=0.0),
        dict(checkpoint_every=-1),
    ],
)  # fmt: skip
def test_train_values_out_of_range_are_refused(changes):
    with pytest.raises(BadInput, match="train." + list(changes)[-1]):
        train_config(**changes).validate()
    train_config().validate()


def test_decay_leaves_norms_and_biases_alone():
    leaf = np.zeros(2)
    layer = {"query": leaf, "query_bias": leaf, "query_norm": {"scale": leaf}}
    kept = is_matrix({"embedding": leaf, "layers": {"attention": layer}})
    assert kept == {
        "embedding": True,
        "layers": {
            "attention": {
                "query": True, "query_bias": False, "query_norm": {"scale": False},
            }
        },
    }  # fmt: skip
