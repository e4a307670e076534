"""The jitted steps: TRL's training replayed, and what batching may not change."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.errors import BadInput
from tpmm_jax.losses import LossConfig, gradients, pair_log_probs
from tpmm_jax.models import Decoder
from tpmm_jax.models.families import make_config
from tpmm_jax.steps import (
    TrainConfig,
    init_state,
    language_model_loss,
    make_optimizer,
    make_train_step,
    preference_loss,
    schedule,
)
from tpmm_jax.weights.hf_config import parse_config
from tpmm_jax.weights.huggingface import SafetensorsDirectory, read_params

CHUNK = 1 << 18
TOLERANCE = {
    "loss": 1e-5,
    "grad_norm": 5e-4,
    "rewards/chosen": 5e-5,
    "rewards/rejected": 5e-5,
    "rewards/margins": 5e-5,
    "rewards/accuracies": 0.0,
    "logps/chosen": 5e-4,
    "logps/rejected": 5e-4,
}
RUNS = {
    "f32": (LossConfig(), 0.0),
    "f32_precomputed": (LossConfig(), 0.0),
    "f32_wd": (LossConfig(), 0.1),
    "f32_hinge": (LossConfig(name="hinge"), 0.0),
    "f32_ipo": (LossConfig(name="ipo"), 0.0),
}


@functools.cache
def trl(fixtures):
    """Decoder, initial parameters (NumPy), batches with reference_BN, expectations."""
    folder = fixtures / "trl_dpo"
    hf = json.loads((folder / "model" / "config.json").read_text())
    decoder = Decoder(parse_config(hf, "config.json"))
    params = read_params(SafetensorsDirectory(folder / "model"), decoder, "float32")
    arrays = np.load(folder / "batches.npz")

    def pairs(rows):
        return jnp.asarray(np.stack([rows[:8], rows[8:]], axis=1), jnp.int32)

    reference = jax.jit(
        lambda p, b: pair_log_probs(decoder, p, b, chunk_bytes=CHUNK)
    )
    batches = []
    for i in range(20):
        batch = {
            "tokens_BNT": pairs(arrays["input_ids"][i]),
            "mask_BNT": pairs(arrays["attention_mask"][i]),
            "completion_mask_BNT": pairs(arrays["completion_mask"][i]),
            "weight_B": jnp.ones(8, jnp.float32),
        }
        batches.append({**batch, "reference_BN": reference(params, batch)})
    expected = json.loads((folder / "expected.json").read_text())
    return decoder, jax.device_get(params), batches, expected


@pytest.mark.parametrize("run", RUNS)
def test_twenty_steps_of_trl(fixtures, run):
    decoder, params, batches, expected = trl(fixtures)
    loss, weight_decay = RUNS[run]
    config = TrainConfig(
        learning_rate=5e-4,
        schedule="constant",
        warmup_fraction=0.0,
        batch_size=8,
        weight_decay=weight_decay,
    )
    optimizer = make_optimizer(config, 20)
    state = init_state(optimizer, jax.tree.map(jnp.asarray, params))
    # Half of the runs in two micro-batches: TRL's numbers hold all the same.
    accumulation = 2 if run in ("f32", "f32_ipo") else 1
    step = make_train_step(
        preference_loss(decoder, loss, CHUNK), optimizer, accumulation=accumulation
    )
    for i, (batch, wanted) in enumerate(zip(batches, expected["runs"][run]["steps"])):
        state, metrics = step(state, batch)
        for name, tolerance in TOLERANCE.items():
            # Relative above 1: IPO's loss is 25, its gradient 44.
            bound = tolerance * max(1.0, abs(wanted[name]) if "logps" not in name else 1)
            found = float(metrics[name])
            assert abs(found - wanted[name]) <= bound, (i, name, found, wanted[name])
    assert int(state.step) == 20


def test_reference_log_probs_are_trls(fixtures):
    _, _, batches, expected = trl(fixtures)
    for batch, wanted in zip(batches, expected["runs"]["f32"]["steps"]):
        rows = np.asarray(wanted["ref_logps"]).reshape(2, 8).T
        np.testing.assert_allclose(batch["reference_BN"], rows, rtol=0, atol=5e-4)


CONFIG = make_config(
    "llama", vocab_size=23, width=10, mlp_width=13, num_layers=2, num_heads=3,
    num_kv_heads=1, head_dim=4, max_positions=64,
)  # fmt: skip
DECODER = Decoder(CONFIG)


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


def run_gradients(batch, accumulation, config=LossConfig()):  # noqa: B008
    params = DECODER.init(jax.random.key(1))
    loss_fn = preference_loss(DECODER, config, 500)
    batch = jax.tree.map(jnp.asarray, batch)
    run = jax.jit(lambda p, b: gradients(loss_fn, p, b, accumulation, None))
    return jax.device_get(run(params, batch))


def assert_same(found, wanted, relative=1e-6):
    scale = max(np.abs(x).max() for x in jax.tree.leaves(wanted[0]))
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(wanted[0])):
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * scale)
    np.testing.assert_allclose(found[1], wanted[1], rtol=relative)
    for name, value in wanted[2].items():
        np.testing.assert_allclose(found[2][name], value, rtol=relative, atol=1e-6)


@pytest.mark.parametrize("accumulation", [2, 3, 6])
def test_accumulation_is_one_batch(accumulation):
    batch = pairs(6)
    assert_same(run_gradients(batch, accumulation), run_gradients(batch, 1))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_rows_of_weight_zero_change_nothing(accumulation):
    batch = pairs(5)
    filler = pairs(3, seed=9)
    filler["weight_B"] = np.zeros(3, np.float32)
    filler["reference_BN"] *= 100
    filled = {name: np.concatenate([x, filler[name]]) for name, x in batch.items()}
    # In two micro-batches one of them holds more filler than the other.
    assert_same(run_gradients(filled, accumulation), run_gradients(batch, 1))


def test_a_batch_of_filler_only_has_zero_gradient():
    batch = pairs(4)
    batch["weight_B"] = np.zeros(4, np.float32)
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


def train_config(**changes):
    values = dict(learning_rate=1e-2, batch_size=4, warmup_fraction=0.0)
    return TrainConfig(**{**values, **changes})


def small_step(config, steps=1):
    optimizer = make_optimizer(config, 10)
    state = init_state(optimizer, DECODER.init(jax.random.key(1)))
    step = make_train_step(preference_loss(DECODER, LossConfig(), 500), optimizer)
    before = jax.device_get(state.params)
    for seed in range(steps):
        state, metrics = step(state, jax.tree.map(jnp.asarray, pairs(4, seed=seed)))
    return before, state, metrics


def test_the_state_is_donated():
    optimizer = make_optimizer(train_config(), 10)
    state = init_state(optimizer, DECODER.init(jax.random.key(1)))
    step = make_train_step(preference_loss(DECODER, LossConfig(), 500), optimizer)
    new, _ = step(state, jax.tree.map(jnp.asarray, pairs(4)))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    assert not any(x.is_deleted() for x in jax.tree.leaves(new))


def test_the_first_adamw_step_in_numpy():
    config = train_config(weight_decay=0.3, eps=1e-8, max_grad_norm=0.01)
    before, state, metrics = small_step(config)
    grads, *_ = run_gradients(pairs(4), 1)
    norm = np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)
    assert norm > 0.01

    def wanted(path, x, g):
        g = g.astype(np.float64) * min(1, 0.01 / norm)
        # The first step's bias-corrected moments are g and g^2.
        decay = 0.0 if path[-1].key == "scale" else 0.3
        return x - 1e-2 * (g / (np.abs(g) + 1e-8) + decay * x)

    expected = jax.tree_util.tree_map_with_path(wanted, before, grads)
    for (path, a), b, g in zip(
        jax.tree_util.tree_leaves_with_path(jax.device_get(state.params)),
        jax.tree.leaves(expected),
        jax.tree.leaves(grads),
    ):
        # Where a gradient is rounding noise, its sign is too.
        real = np.abs(g) > 1e-7 * norm
        np.testing.assert_allclose(a[real], b[real], rtol=0, atol=2e-5, err_msg=path)


def test_norm_scales_are_not_decayed():
    config = train_config(weight_decay=0.5, learning_rate=1e-9)
    before, state, _ = small_step(train_config(weight_decay=0.5), steps=2)
    plain, other, _ = small_step(train_config(weight_decay=0.0), steps=1)
    del config, plain, other
    scale = state.params["final_norm"]["scale"]
    # Decay alone would take 1 % from 1.0 in two steps; Adam's steps are +-0.01.
    assert np.abs(np.asarray(scale) - before["final_norm"]["scale"]).max() <= 0.0201


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
    rate, warmup = schedule(config, total), round(fraction * total)
    for step in range(total + 2):
        wanted = numpy_schedule(kind, step, total, warmup, 3e-4)
        np.testing.assert_allclose(float(rate(step)), wanted, rtol=1e-5, atol=1e-12)
        assert step >= total or kind == "constant" or float(rate(step)) > 0


def test_language_model_loss_is_the_mean_a_token():
    params = DECODER.init(jax.random.key(1))
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 23, (4, 9)), jnp.int32)
    mask = jnp.asarray(np.arange(9) < np.asarray([9, 4, 2, 1])[:, None], jnp.int32)
    batch = {
        "tokens_BT": tokens,
        "mask_BT": mask,
        "weight_B": jnp.asarray([8.0, 3.0, 1.0, 0.0]),
    }
    loss_fn = language_model_loss(DECODER, 500)
    run = jax.jit(gradients, static_argnums=(0, 3, 4))
    _, loss, _ = run(loss_fn, params, batch, 2, None)
    logits = DECODER.logits(params, DECODER.hidden(params, tokens, mask))
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
