"""Adapters inside the layers are the dense policy W + s A B, and what that implies."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.errors import BadInput
from tpmm_jax.losses import log_probs
from tpmm_jax.merging import weighted_sum
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import Adapted, Decoder, LoraConfig, from_mask
from tpmm_jax.models.families import make_config
from tpmm_jax.models.lora import (
    TARGETS,
    drop,
    get,
    init_adapters,
    merge_adapters,
    placed,
    scaling,
    targets,
)

CONFIG = make_config(
    "qwen3", vocab_size=37, width=12, mlp_width=22, num_layers=3, num_heads=4,
    num_kv_heads=2, head_dim=6, max_positions=64,
)  # fmt: skip
LORA = LoraConfig(rank=3, alpha=7.0)
B, T = 4, 11


@functools.cache
def parts(lora=LORA, mesh=False):
    """Decoder, base and adapters with a product that is not zero."""
    where = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)) if mesh else None
    decoder = Decoder(CONFIG, mesh=where, lora=lora)
    base = decoder.init(jax.random.key(1))
    adapters = init_adapters(decoder.abstract_params(), lora, jax.random.key(2))
    return decoder, base, moved(adapters, 3)


def moved(adapters, seed, size=0.2):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jax.device_put(
            np.asarray(x) + size * rng.standard_normal(x.shape).astype(np.float32),
            x.sharding,
        ),
        adapters,
    )


def rows(seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 37, (B, T)).astype(np.int32)
    lengths = rng.integers(4, T + 1, B)
    mask = (np.arange(T) < lengths[:, None]).astype(np.int32)
    return jnp.asarray(tokens), jnp.asarray(mask)


@functools.partial(jax.jit, static_argnums=0)
def token_log_probs(decoder, params, tokens, mask):
    return log_probs(decoder, params, from_mask(tokens, mask))


def as_matrix(w, inputs):
    """[L, *in, *out] as [L, in, out]."""
    return w.reshape(w.shape[0], math.prod(w.shape[1 : 1 + inputs]), -1)


@pytest.mark.parametrize("rslora", [False, True])
def test_dense_is_the_formula(rslora):
    lora = dataclasses.replace(LORA, rslora=rslora)
    _, base, adapters = parts()
    found = jax.device_get(merge_adapters(base, adapters, lora))
    base = jax.device_get(base)
    scale = 7.0 / (math.sqrt(3) if rslora else 3)
    for target in TARGETS.values():
        w, pair = np.float64(get(base, target.path)), get(adapters, target.path)
        a = np.float64(as_matrix(pair["a"], target.inputs))
        b = np.float64(np.asarray(pair["b"]).reshape(3, 3, -1))
        expected = as_matrix(w, target.inputs) + scale * a @ b
        got = as_matrix(get(found, target.path), target.inputs)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)
    for name in ("embedding", "head", "final_norm"):
        jax.tree.map(np.testing.assert_array_equal, found[name], base[name])


@pytest.mark.parametrize("only", [None, *TARGETS])
def test_adapters_in_the_layers_are_the_dense_policy(only):
    decoder, base, adapters = parts()
    if only is not None:
        # The others' products are zero: one compiled program serves all.
        adapters = jax.tree.map(lambda x: x, adapters)
        for target, pair in placed(adapters):
            pair["b"] = pair["b"] * (target == TARGETS[only])
    tokens, mask = rows()
    inside = token_log_probs(decoder, Adapted(base, adapters), tokens, mask)
    outside = token_log_probs(
        decoder, merge_adapters(base, adapters, LORA), tokens, mask
    )
    np.testing.assert_allclose(inside, outside, rtol=0, atol=1e-5)
    without = token_log_probs(decoder, base, tokens, mask)
    assert np.abs(np.asarray(inside - without)).max() > 1e-2


def test_some_targets_alone():
    lora = dataclasses.replace(LORA, targets="down_proj,q_proj")
    decoder, base, _ = parts()
    decoder = dataclasses.replace(decoder, lora=lora)
    adapters = init_adapters(decoder.abstract_params(), lora, jax.random.key(2))
    assert jax.tree.structure(adapters) == jax.tree.structure(
        decoder.abstract_trained()
    )
    assert [target for target, _ in placed(adapters)] == [
        TARGETS["q_proj"],
        TARGETS["down_proj"],
    ]
    adapters, (tokens, mask) = moved(adapters, 4), rows()
    inside = token_log_probs(decoder, Adapted(base, adapters), tokens, mask)
    policy = merge_adapters(base, adapters, lora)
    outside = token_log_probs(parts()[0], policy, tokens, mask)
    np.testing.assert_allclose(inside, outside, rtol=0, atol=1e-5)


def test_a_zero_product_is_the_base_bit_for_bit():
    decoder, base, _ = parts()
    base["layers"]["mlp"]["up"] = base["layers"]["mlp"]["up"].at[0, 0, 0].set(-0.0)
    adapters = init_adapters(decoder.abstract_params(), LORA, jax.random.key(5))
    for _, pair in placed(adapters):
        bound = math.prod(pair["a"].shape[1:-1]) ** -0.5
        assert 0.9 * bound < np.abs(pair["a"]).max() <= bound
        assert not np.any(pair["b"])
    for x, y in zip(
        jax.tree.leaves(merge_adapters(base, adapters, LORA)), jax.tree.leaves(base)
    ):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    tokens, mask = rows()
    with jax.disable_jit():
        # Operation by operation: two compiled programs may fuse, and round, otherwise.
        inside = decoder.hidden(Adapted(base, adapters), from_mask(tokens, mask))
        without = decoder.hidden(base, from_mask(tokens, mask))
    np.testing.assert_array_equal(inside, without)


def test_gradients_of_a_and_b_are_those_through_the_dense_product():
    decoder, base, adapters = parts()
    sequences = from_mask(*rows())

    def through_layers(adapters):
        return jnp.sum(log_probs(decoder, Adapted(base, adapters), sequences))

    def through_product(adapters):
        policy = jax.tree.map(lambda x: x, base)
        for target, pair in placed(adapters):
            w = get(base, target.path)
            a = as_matrix(pair["a"], target.inputs)
            b = pair["b"].reshape(*pair["b"].shape[:2], -1)
            product = jnp.einsum("LIZ,LZO->LIO", a, b, precision="highest")
            get(policy, target.path[:-1])[target.path[-1]] = w + scaling(
                LORA
            ) * product.reshape(w.shape)
        return jnp.sum(log_probs(decoder, policy, sequences))

    found = jax.jit(jax.grad(through_layers))(adapters)
    expected = jax.jit(jax.grad(through_product))(adapters)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        scale = np.abs(y).max()
        assert scale > 1e-3
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5 * scale)


def test_a_merge_merges_products_and_not_their_factors():
    """Three policies against the closed form in float64."""
    _, base, first = parts()
    steps = [first, moved(first, 11), moved(first, 12)]
    weights = [0.5, 0.2, 0.3]
    merged, _ = weighted_sum((merge_adapters(base, x, LORA) for x in steps), weights)
    apart = jax.tree.map(lambda *x: sum(w * y for w, y in zip(weights, x)), *steps)
    wrong = merge_adapters(base, apart, LORA)
    for target in TARGETS.values():
        w = np.float64(as_matrix(np.asarray(get(base, target.path)), target.inputs))
        expected = w.copy()
        for weight, adapters in zip(weights, steps):
            pair = get(adapters, target.path)
            a = np.float64(as_matrix(np.asarray(pair["a"]), target.inputs))
            b = np.float64(np.asarray(pair["b"]).reshape(3, 3, -1))
            expected += weight * scaling(LORA) * a @ b
        got = as_matrix(np.asarray(get(merged, target.path)), target.inputs)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)
        other = as_matrix(np.asarray(get(wrong, target.path)), target.inputs)
        assert np.abs(other - expected).max() > 1e-2


def test_sharded_is_unsharded():
    decoder, base, adapters = parts()
    many, _, _ = parts(mesh=True)
    put = functools.partial(jax.tree.map, lambda x, a: jax.device_put(x, a.sharding))
    base_s = put(base, many.abstract_params())
    adapters_s = put(adapters, many.abstract_trained())
    split = [x.sharding.spec for x in jax.tree.leaves(adapters_s)]
    assert any(any(axes) for axes in split)
    one, other = (
        merge_adapters(base, adapters, LORA),
        merge_adapters(base_s, adapters_s, LORA),
    )
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    where = jax.tree.map(lambda x: x.sharding, many.abstract_params())
    assert jax.tree.map(lambda x: x.sharding, other) == where
    tokens, mask = rows()
    a = token_log_probs(decoder, Adapted(base, adapters), tokens, mask)
    b = token_log_probs(many, Adapted(base_s, adapters_s), tokens, mask)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    drawn = init_adapters(many.abstract_params(), LORA, jax.random.key(2))
    alone = init_adapters(decoder.abstract_params(), LORA, jax.random.key(2))
    jax.tree.map(np.testing.assert_array_equal, drawn, alone)


# ---- dropout

DROPPED = dataclasses.replace(LORA, dropout=0.25)


def test_dropout_keeps_the_mean_and_drops_its_share():
    x = np.float32(np.random.default_rng(0).uniform(1, 2, (2, 50, 400)))
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 2))
    found = np.asarray(drop(jnp.asarray(x), keys, jnp.float32(0.75)))
    kept = found != 0
    # Four standard errors of a share of 20,000.
    assert np.all(np.abs(kept.mean(axis=(1, 2)) - 0.75) < 4 * 0.0031)
    np.testing.assert_allclose(found[kept], (x / 0.75)[kept], rtol=1e-6)
    assert not np.array_equal(kept[0], kept[1])


def test_dropout_is_a_rows_own_and_comes_again():
    decoder, base, adapters = parts()
    decoder = dataclasses.replace(decoder, lora=DROPPED)
    tokens, mask = rows()

    def run(key, order=slice(None), remat=True):
        model = dataclasses.replace(decoder, remat=remat)
        params = Adapted(base, adapters, jax.random.key(key))
        return np.asarray(token_log_probs(model, params, tokens[order], mask[order]))

    first = run(0)
    np.testing.assert_array_equal(run(0), first)
    # Neither a row's place in the batch nor rematerialisation changes its draw.
    np.testing.assert_allclose(run(0, slice(None, None, -1))[::-1], first, atol=1e-5)
    np.testing.assert_allclose(run(0, remat=False), first, atol=1e-5)
    assert np.abs(run(1) - first).max() > 1e-3
    plain = token_log_probs(decoder, Adapted(base, adapters), tokens, mask)
    off = token_log_probs(
        parts()[0], merge_adapters(base, adapters, LORA), tokens, mask
    )
    np.testing.assert_allclose(plain, off, rtol=0, atol=1e-5)
    assert np.abs(plain - first).max() > 1e-3


def test_dropout_does_not_depend_on_what_stands_at_padding():
    decoder, base, adapters = parts()
    decoder = dataclasses.replace(decoder, lora=DROPPED)
    params = Adapted(base, adapters, jax.random.key(0))
    tokens, mask = rows()
    other = jnp.where(mask > 0, tokens, 5)
    np.testing.assert_array_equal(
        token_log_probs(decoder, params, tokens, mask),
        token_log_probs(decoder, params, other, mask),
    )


# ---- the config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": -1}, r"model\.lora\.rank is -1; use at least 1"),
        ({"alpha": 8.0}, r"model\.lora\.alpha is 8\.0, but LoRA is off"),
        ({"rank": 4, "alpha": 0.0}, r"alpha is 0\.0; use a positive"),
        ({"rank": 4, "alpha": float("nan")}, r"alpha is nan; use a positive, finite"),
        ({"rank": 4, "dropout": 1.0}, r"dropout is 1\.0; use a number in \[0, 1\)"),
        ({"rank": 4, "targets": "q_proj,k_porj"}, r"'k_porj'.*did you mean k_proj"),
        ({"rank": 4, "targets": ""}, r"targets: ''"),
    ],
)
def test_a_wrong_field_is_named(fields, message):
    with pytest.raises(BadInput, match=message):
        LoraConfig(**fields).validate()


def test_targets_are_a_set_in_one_order():
    assert list(targets(LoraConfig(rank=1, targets="v_proj, q_proj,v_proj"))) == [
        "q_proj",
        "v_proj",
    ]
    assert list(targets(LoraConfig(rank=1))) == list(TARGETS)
