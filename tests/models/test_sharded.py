"""A 2 x 2 x 2 mesh computes what one device computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tpmm_jax as tpmm
from tpmm_jax.errors import BadInput
from tpmm_jax.losses import LossConfig, gradients, log_probs, preference_loss
from tpmm_jax.merging import Deltas, group_names, merge_parts, weighted_sum
from tpmm_jax.mesh import MeshConfig, fill, fit_spec, make_mesh, put_batch
from tpmm_jax.models import Decoder, from_mask
from tpmm_jax.models.families import make_config
from tpmm_jax.steps import TrainConfig, init_state, preference_step

# Heads divide by tensor = 2 in "even"; "odd" has one key/value head of three
# query heads, and no size that two divides.
CONFIGS = {
    "even": make_config(
        "qwen3", vocab_size=38, width=12, mlp_width=20, num_layers=3, num_heads=4,
        num_kv_heads=2, head_dim=6, max_positions=64,
    ),
    "odd": make_config(
        "gemma", vocab_size=37, width=15, mlp_width=21, num_layers=3, num_heads=3,
        num_kv_heads=1, head_dim=6, max_positions=64,
    ),
    "query only": make_config(
        "llama", vocab_size=37, width=12, mlp_width=21, num_layers=2, num_heads=6,
        num_kv_heads=3, head_dim=4, max_positions=64,
    ),
    "windowed and biased": make_config(
        "qwen2", vocab_size=38, width=12, mlp_width=20, num_layers=3, num_heads=4,
        num_kv_heads=2, head_dim=6, max_positions=64, window=4,
        windowed_layers=(True, False, True), output_bias=True, mlp_bias=True,
        post_norms=True, attention_softcap=3.0,
    ),
}  # fmt: skip


def mesh222():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@functools.cache
def both(name):
    """(decoder, parameters) on one device and on the mesh, of the same numbers."""
    one = Decoder(CONFIGS[name], chunk_bytes=400)
    many = Decoder(CONFIGS[name], mesh=mesh222(), chunk_bytes=400)
    # Biases away from where they start, zero.
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.3 if path[-1].key.endswith("bias") else x,
        one.init(jax.random.key(7)),
    )
    where = jax.tree.map(lambda x: x.sharding, many.abstract_params())
    return (one, params), (many, jax.device_put(params, where))


def rows(B, T, vocab, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, (B, T)).astype(np.int32)
    lengths = rng.integers(3, T + 1, B)
    return tokens, (np.arange(T) < lengths[:, None]).astype(np.int32)


def pairs(B, T, vocab, seed=0):
    tokens, mask = rows(2 * B, T, vocab, seed)
    completion = mask * (np.arange(T) >= 2)
    rng = np.random.default_rng(seed + 1)
    return {
        "tokens_BNT": tokens.reshape(B, 2, T),
        "mask_BNT": mask.reshape(B, 2, T),
        "completion_mask_BNT": completion.reshape(B, 2, T).astype(np.int32),
        "reference_BN": rng.normal(-20, 2, (B, 2)).astype(np.float32),
        "weight_B": np.ones(B, np.float32),
    }


def assert_trees_close(found, wanted, relative):
    """The difference's norm, relative to the whole tree's, in float64."""

    def norm(tree):
        leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
        return np.sqrt(sum((x**2).sum() for x in leaves))

    found, wanted = jax.device_get((found, wanted))
    assert norm(jax.tree.map(np.subtract, found, wanted)) <= relative * norm(wanted)


# The gradient of the last two goes through their forward pass too.
@pytest.mark.parametrize(
    "name, B",
    [
        ("even", 3),
        ("odd", 8),
        pytest.param("query only", 5, marks=pytest.mark.slow),
        pytest.param("windowed and biased", 4, marks=pytest.mark.slow),
    ],
)
def test_forward(name, B):
    tokens, mask = rows(B, 11, CONFIGS[name].vocab_size)
    found = []
    for decoder, params in both(name):
        batch = put_batch((tokens, mask), decoder.mesh)
        run = jax.jit(
            lambda p, t, m, d=decoder: (
                d.logits(p, d.hidden(p, from_mask(t, m))),
                log_probs(d, p, from_mask(t, m)),
            )
        )
        found.append(jax.device_get(run(params, *batch)))
    (logits, logp), (logits8, logp8) = found
    np.testing.assert_allclose(logits8, logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logp8, logp, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name, B, accumulation",
    [
        ("even", 8, 2),
        ("odd", 5, 1),
        ("query only", 4, 1),
        ("windowed and biased", 4, 1),
    ],
)
def test_preference_gradient(name, B, accumulation):
    batch = pairs(B, 9, CONFIGS[name].vocab_size)
    found = []
    for decoder, params in both(name):
        loss_fn = preference_loss(decoder, LossConfig().objective())
        run = jax.jit(
            lambda p, b, f=loss_fn, d=decoder: gradients(f, p, b, accumulation, d.mesh)
        )
        found.append(run(params, put_batch(batch, decoder.mesh)))
    (grads, loss, metrics), (grads8, loss8, metrics8) = found
    assert_trees_close(grads8, grads, 2e-6)
    np.testing.assert_allclose(loss8, loss, rtol=1e-6)
    assert_trees_close(metrics8, metrics, 1e-6)


@pytest.mark.parametrize("name", ["even"])
def test_training_steps_keep_every_sharding(name):
    config = TrainConfig(learning_rate=1e-2, batch_size=4)
    found = []
    for decoder, params in both(name):
        state = init_state(jax.tree.map(jnp.array, params), config)
        before = jax.tree.map(lambda x: x.sharding, state)
        step = preference_step(decoder, LossConfig(), config)
        for seed in range(3):
            batch = pairs(4, 9, decoder.config.vocab_size, seed)
            state, _ = step(state, put_batch(batch, decoder.mesh), 1e-2)
        same = jax.tree.map(
            lambda x, where: x.sharding.is_equivalent_to(where, x.ndim),
            (state.params, state.opt_state),
            (before.params, before.opt_state),
        )
        assert all(jax.tree.leaves(same)), same
        # One program for the first step and one for the next would be two.
        assert step.func._cache_size() == 1
        found.append(state.params)
    assert_trees_close(found[1], found[0], 1e-4)


@pytest.mark.parametrize("name", ["even", pytest.param("odd", marks=pytest.mark.slow)])
def test_generation_draws_the_same_tokens(name):
    found = []
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
    for decoder, params in both(name):
        model = tpmm.Model(decoder, params)
        found.append(
            tpmm.generate(model, prompts, max_new_tokens=9, num_samples=3, seed=5)
        )
    assert found[0] == found[1]


@pytest.mark.parametrize("name, granularity", [("even", "model"), ("odd", "layer")])
def test_merge(name, granularity, tmp_path):
    (_, params), (_, sharded) = both(name)
    rng = np.random.default_rng(0)

    def trajectory(params):
        rng = np.random.default_rng(1)
        shifts = jax.tree.map(lambda x: rng.normal(0, 1e-3, (3, *x.shape)), params)
        return [
            jax.tree.map(
                lambda x, s, k=k: jax.device_put(
                    np.float32(np.asarray(x) + s[k]), x.sharding
                ),
                params,
                shifts,
            )
            for k in range(3)
        ]

    groups = 1 if granularity == "model" else CONFIGS[name].num_layers + 2
    groups += granularity == "layer" and not CONFIGS[name].tie_embeddings
    weights = rng.dirichlet(np.ones(3), groups)
    merged = []
    for folder, models in (("one", trajectory(params)), ("many", trajectory(sharded))):
        names = group_names(params, granularity)
        with Deltas(tmp_path / folder, models.__getitem__, 3, names) as deltas:
            merged.append(deltas.merge(weights))
            gradient = deltas.weight_gradient(models[1])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=x.sharding),
            models[0],
        )
        parts = merge_parts(
            lambda k, *_, models=models: models[k], target, weights, names
        )
        where = jax.tree.map(lambda x: x.sharding, parts)
        assert where == jax.tree.map(lambda x: x.sharding, models[0])
        jax.tree.map(
            np.testing.assert_array_equal, *jax.device_get((parts, merged[-1]))
        )
        merged[-1]["gradient"] = gradient
        if granularity == "model":
            plain, _ = weighted_sum(iter(models), weights[0].tolist())
            assert_trees_close(
                {k: v for k, v in merged[-1].items() if k != "gradient"}, plain, 1e-7
            )
    assert_trees_close(merged[1].pop("gradient"), merged[0].pop("gradient"), 1e-6)
    assert jax.tree.map(lambda x: x.sharding, merged[1]) == jax.tree.map(
        lambda x: x.sharding, sharded
    )
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get(merged))


def test_initial_parameters_are_the_same_and_lie_on_every_axis():
    (_, one), (decoder, _) = both("even")
    params = decoder.init(jax.random.key(7))
    assert_trees_close(params, one, 1e-6)
    query = params["layers"]["attention"]["query"]
    assert query.sharding.shard_shape(query.shape) == (3, 6, 2, 6)
    up = params["layers"]["mlp"]["up"]
    assert up.sharding.shard_shape(up.shape) == (3, 6, 10)


def test_axes_that_do_not_divide_are_dropped():
    mesh = mesh222()
    assert fit_spec(mesh, (8, 6), (("data", "fsdp"), "tensor")) == (
        jax.sharding.PartitionSpec(("data", "fsdp"), "tensor")
    )
    assert fit_spec(mesh, (6, 5), (("data", "fsdp"), "tensor")) == (
        jax.sharding.PartitionSpec("data", None)
    )


@pytest.mark.parametrize(
    "sizes",
    [(3, 1, 1), (-1, -1, 1), (0, 8, 1), (-2, 4, 1), (-1, 3, 1), (16, 1, 1)],
)
def test_meshes_that_do_not_fit_are_refused(sizes):
    data, fsdp, tensor = sizes
    with pytest.raises(BadInput, match="devices"):
        make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


def test_put_batch_without_a_mesh_gives_arrays():
    assert isinstance(put_batch({"x": np.ones(3)}, None)["x"], jax.Array)


@pytest.mark.parametrize(
    "rows, sides, filled", [(6, 1, 8), (8, 1, 8), (9, 1, 16), (4, 2, 4), (3, 2, 4)]
)
def test_batches_are_filled_up_so_that_all_devices_share_them(
    rows: int, sides: int, filled: int
) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    assert fill(mesh, rows, sides) == filled
    assert fill(make_mesh(MeshConfig(data=1, tensor=8)), rows, sides) == rows
