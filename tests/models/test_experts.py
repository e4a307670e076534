"""Routed experts: dense at step 0, a plain loop's values and gradients, any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tpmm_jax as tpmm
from tpmm_jax.errors import BadInput
from tpmm_jax.losses import RewardLossConfig, reward_loss
from tpmm_jax.losses.gradients import coupled_gradients
from tpmm_jax.losses.reward import load_balance
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import (
    Decoder,
    ExpertsConfig,
    NoiseConfig,
    Noisy,
    experts,
    feed_forward,
    from_mask,
)
from tpmm_jax.models.families import make_config
from tpmm_jax.models.upcycling import UpcyclingConfig
from tpmm_jax.weights.source import Model

SIZES = {
    "vocab_size": 96, "width": 16, "mlp_width": 32, "num_layers": 3, "num_heads": 4,
    "num_kv_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def dense():
    config = make_config("llama", **SIZES, output="reward")
    decoder = Decoder(config, remat=False)
    return Model(decoder, decoder.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(1, 96, (8, 12)).astype(np.int32)
    mask_BT = np.ones_like(tokens_BT)
    mask_BT[1, 7:] = mask_BT[2, :5] = 0
    return jnp.asarray(tokens_BT), jnp.asarray(mask_BT)


def rewards(model, rows):
    return np.asarray(jax.jit(model.decoder.rewards)(model.params, from_mask(*rows)))


@pytest.mark.parametrize("layers", ["all", "1-2", "0,2"])
def test_upcycled_scores_are_the_dense_ones(dense, rows, layers):
    moe = tpmm.upcycle(dense, experts=4, top_k=3, shared=0.3, layers=layers)
    np.testing.assert_allclose(rewards(moe, rows), rewards(dense, rows), atol=1e-5)


def plainly(x_BTD, routing, weights, config, activation, dtype, mesh):
    """The sum over all experts, each of all tokens."""
    total = 0.0
    for i in range(config.experts.count):
        out = activation(x_BTD @ weights.gate[i]) * (x_BTD @ weights.up[i])
        gate_BT = jnp.sum(jnp.where(routing.ids == i, routing.gates, 0.0), axis=-1)
        total += gate_BT[..., None] * (out @ weights.down[i])
    return total


@pytest.fixture(scope="module")
def noisy(dense):
    return tpmm.upcycle(dense, experts=4, noise=0.5, layers="1-2")


def value_and_gradient(decoder, params, rows):
    def total(params):
        reward_B = decoder.rewards(params, from_mask(*rows))
        return jnp.sum(reward_B * jnp.arange(len(reward_B)))

    return jax.jit(jax.value_and_grad(total))(params)


@pytest.fixture(scope="module")
def plain(noisy, rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed_forward, "apply_experts", plainly)
        return value_and_gradient(noisy.decoder, noisy.params, rows)


def assert_same(found, wanted):
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        scale = max(1.0, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a, b, atol=1e-5 * scale, err_msg=str(path))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_values_and_gradients_are_a_plain_loops(
    noisy, rows, plain, platform, monkeypatch
):
    """Of the loop over blocks, and of ragged_dot, which accelerators take."""
    monkeypatch.setattr(experts, "_platform", lambda mesh: platform)
    assert_same(value_and_gradient(noisy.decoder, noisy.params, rows), plain)


@pytest.mark.parametrize(
    "sizes", [{"expert": 4}, {"fsdp": 2, "tensor": 2, "expert": 2}]
)
def test_sharded_is_unsharded(noisy, rows, plain, sizes):
    mesh = make_mesh(MeshConfig(**sizes))
    decoder = dataclasses.replace(noisy.decoder, mesh=mesh, remat=True)
    where = jax.tree.map(lambda x: x.sharding, decoder.abstract_params())
    assert "expert" in str(where["experts"]["down"].spec)
    params = jax.device_put(noisy.params, where)
    assert_same(value_and_gradient(decoder, params, rows), plain)


def test_padding_changes_no_reward(noisy, rows):
    tokens_BT, mask_BT = rows
    wide = [jnp.pad(x, ((0, 0), (3, 2))) for x in rows]
    found, wanted = rewards(noisy, wide), rewards(noisy, rows)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    other = jnp.where(mask_BT > 0, tokens_BT, 50)
    np.testing.assert_allclose(rewards(noisy, (other, mask_BT)), wanted, atol=1e-6)


def batch_of(rows):
    tokens_BT, mask_BT = rows
    pairs = {
        "tokens_BNT": tokens_BT.reshape(4, 2, -1),
        "mask_BNT": mask_BT.reshape(4, 2, -1),
        "margin_B": np.zeros(4, np.float32),
        "weight_B": np.array([1, 1, 1, 0], np.float32),
    }
    return jax.tree.map(jnp.asarray, pairs)


def test_accumulation_changes_no_gradient(noisy, rows):
    """The load balance is a product of sums over the whole batch."""
    loss = reward_loss(noisy.decoder, RewardLossConfig(load_balance=1.0, z_loss=0.1))
    found = [
        jax.jit(
            lambda params, n=n: coupled_gradients(
                loss, params, batch_of(rows), (), n, None
            )
        )(noisy.params)
        for n in (1, 4)
    ]
    assert_same(found[1], found[0])
    metrics = found[0][2]
    assert 0 <= metrics["router/idlest"] <= 0.25 <= metrics["router/busiest"] <= 0.5
    assert 0 < metrics["router/entropy"] <= np.log(4) + 1e-6


def test_rows_that_fill_the_batch_count_for_nothing(noisy, rows):
    """The last pair of the batch has weight 0: its tokens change no metric."""
    loss = reward_loss(noisy.decoder, RewardLossConfig(load_balance=1.0, z_loss=0.1))
    batch = batch_of(rows)
    tokens = batch["tokens_BNT"]
    other = batch | {"tokens_BNT": jnp.concatenate([tokens[:-1], tokens[:1]])}
    found = [
        coupled_gradients(loss, noisy.params, x, (), 1, None)[2] for x in (batch, other)
    ]
    assert not jnp.array_equal(tokens[-1], tokens[0])
    for name, value in found[0].items():
        assert float(found[1][name]) == pytest.approx(float(value), rel=1e-6), name


def test_the_load_balance_is_switchs():
    """1 where experts are used alike; X where one takes all."""
    even = np.full((2, 4), 10.0, np.float32)
    one = np.zeros((2, 4), np.float32)
    one[:, 1] = 40.0
    config = ExpertsConfig(count=4, top_k=2)
    for share, wanted in ((even, 1.0), (one, 4.0)):
        assert load_balance(
            jnp.asarray(share), jnp.asarray(share), config
        ) == pytest.approx(wanted)


def test_noise_is_a_steps_own_and_of_training_alone(noisy, rows):
    noise = NoiseConfig(dropout=0.2, jitter=0.1)
    decoder = dataclasses.replace(noisy.decoder, noise=noise)

    @jax.jit
    def drawn(key, tokens_BT, mask_BT):
        params = Noisy(noisy.params, key)
        return decoder.rewards(params, from_mask(tokens_BT, mask_BT))

    one, two = (np.asarray(drawn(jax.random.key(n), *rows)) for n in (1, 2))
    assert np.abs(one - two).min() > 0
    np.testing.assert_array_equal(one, drawn(jax.random.key(1), *rows))
    # A row's noise is its own, whatever stands around it.
    turned = drawn(jax.random.key(1), *(x[::-1] for x in rows))
    np.testing.assert_allclose(turned[::-1], one, atol=1e-6)
    still = Model(decoder, noisy.params)
    np.testing.assert_array_equal(rewards(still, rows), rewards(noisy, rows))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top_k": 1}, "top_k is 1"),
        ({"top_k": 5}, "top_k is 5"),
        ({"experts": 0}, "experts is 0"),
        ({"experts": 1}, "experts is 1"),
        ({"shared": 1.0}, "shared is 1.0"),
        ({"layers": "2-5"}, "not among the layers 0 to 2"),
        ({"layers": "first"}, "neither a number nor a range"),
        ({"noise": -1.0}, "noise is -1.0"),
    ],
)
def test_what_cannot_be_upcycled_is_refused(dense, changes, words):
    with pytest.raises(BadInput, match=words):
        tpmm.upcycle(dense, **changes)


def test_models_that_cannot_be_upcycled(dense, noisy):
    with pytest.raises(BadInput, match="mixture of experts already"):
        tpmm.upcycle(noisy)
    causal = dataclasses.replace(dense.config, output="tokens")
    with pytest.raises(BadInput, match="causal language model"):
        UpcyclingConfig(count=4).of(causal, "it")


def test_an_axis_of_experts_that_does_not_fit_is_refused(dense, noisy):
    mesh = make_mesh(MeshConfig(expert=8))
    with pytest.raises(BadInput, match="4 experts do not divide"):
        experts.check_mesh(mesh, noisy.config)
    with pytest.raises(BadInput, match="the model is dense"):
        experts.check_mesh(mesh, dense.config)


def test_a_directory_holds_a_mixture(dense, noisy, rows, tmp_path):
    """Under a model_type of its own: others would load the shared expert alone."""
    tpmm.save(noisy, tmp_path / "moe")
    again = tpmm.load_reward(tmp_path / "moe")
    assert again.config == noisy.config
    np.testing.assert_array_equal(rewards(again, rows), rewards(noisy, rows))
    assert '"model_type": "tpmm_experts"' in (tmp_path / "moe/config.json").read_text()
