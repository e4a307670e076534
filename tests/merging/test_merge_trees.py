"""Weighted sums of parameter trees, from memory and from disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.merging import (
    Deltas,
    group_names,
    merge_parts,
    one_hot_index,
    signal_to_rounding,
    weighted_sum,
)
from tpmm_jax.merging.trees import leaves_by_path

L = 3


def tree(seed, scale=0.02, dtype=np.float32):
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        return jnp.asarray(rng.normal(0, scale, shape).astype(dtype))

    return {
        "embedding": leaf(7, 5),
        "final_norm": {"scale": leaf(5)},
        "layers": {"mlp": {"up": leaf(L, 5, 3)}, "norm": {"scale": leaf(L, 5)}},
    }


def near(base, seed, distance=2e-5):
    """A checkpoint as training leaves it: weights of 0.02 moved by about 2e-5."""
    return jax.tree.map(lambda x, d: x + d, base, tree(seed, distance))


def trajectory(K):
    base = tree(0)
    return [base] + [near(base, k) for k in range(1, K)]


def assert_bits_equal(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(
            np.asarray(x).view(np.uint32), np.asarray(y).view(np.uint32)
        ),
        a,
        b,
    )


def in_numpy(models, weights):
    """sum_k w_k theta_k in float64."""

    def one(*leaves):
        return sum(w * np.asarray(x, np.float64) for w, x in zip(weights, leaves))

    return jax.tree.map(one, *models)


def error_in_spacings(found, wanted):
    """The largest difference in units of float32's spacing there."""
    return max(
        float((np.abs(np.asarray(a) - b) / np.spacing(np.abs(np.asarray(a)))).max())
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted))
    )


def bound(K):
    """Half a spacing for each of K roundings, and half for those of the deltas."""
    return (K + 1) / 2


@pytest.mark.parametrize("k", range(4))
def test_a_one_hot_merge_is_that_checkpoint_bit_for_bit(k):
    models = trajectory(4)
    # Where 1.0 * x + 0.0 * y would not do: negative zero, tiny and huge numbers.
    special = jnp.asarray([-0.0, 1e-42, 3e38, -1e-30, 0.1], jnp.float32)
    models[k]["final_norm"]["scale"] = special
    weights = [0.0] * 4
    weights[k] = 1.0
    merged, _ = weighted_sum(iter(models), weights)
    assert_bits_equal(merged, models[k])


def test_a_one_hot_merge_is_a_copy():
    models = trajectory(2)
    merged, _ = weighted_sum(iter(models), [0.0, 1.0])
    jax.tree.map(lambda x: x.delete(), models[1])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(merged))


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.2, 0.3, 0.5], [1 / 7] * 7])
def test_equal_trees_merge_to_themselves(weights):
    base = tree(4)
    merged, _ = weighted_sum((base for _ in weights), weights)
    assert_bits_equal(merged, base)


@pytest.mark.parametrize(
    "weights",
    [[0.25, 0.5, 0.25], [1.3, -0.8, 0.5], [0.1, 0.2, 0.3, 0.4], [2.0, 1.0, -0.5]],
)
def test_a_merge_is_float64s_to_its_roundings(weights):
    models = trajectory(len(weights))
    merged, _ = weighted_sum(iter(models), weights)
    assert error_in_spacings(merged, in_numpy(models, weights)) <= bound(len(models))


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 2, 0]])
def test_the_order_of_checkpoints_does_not_matter(order):
    models, weights = trajectory(3), [0.2, 0.5, 0.3]
    one, _ = weighted_sum(iter(models), weights)
    other, _ = weighted_sum((models[i] for i in order), [weights[i] for i in order])
    assert error_in_spacings(other, jax.tree.map(np.float64, one)) <= 2


def test_an_average_of_averages_over_many_steps():
    """theta <- (1 - mu) theta + mu theta_k, six times, and its closed form."""
    models, mu = trajectory(7), 0.3
    running = models[0]
    for model in models[1:]:
        running, _ = weighted_sum([running, model], [1 - mu, mu])
    weights = [(1 - mu) ** 6] + [mu * (1 - mu) ** (6 - k) for k in range(1, 7)]
    closed, _ = weighted_sum(iter(models), weights)
    exact = in_numpy(models, weights)
    assert error_in_spacings(closed, exact) <= bound(7)
    assert error_in_spacings(running, exact) <= 6 * bound(2)


def test_bfloat16_checkpoints_merge_in_float32():
    models = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), m) for m in trajectory(3)]
    merged, _ = weighted_sum(iter(models), [0.3, 0.3, 0.4])
    assert {x.dtype for x in jax.tree.leaves(merged)} == {np.dtype("float32")}
    exact = in_numpy(
        [jax.tree.map(lambda x: x.astype(jnp.float32), m) for m in models],
        [0.3, 0.3, 0.4],
    )
    assert error_in_spacings(merged, exact) <= 2


def test_a_missing_model_is_an_error():
    with pytest.raises(ValueError):
        weighted_sum(iter(trajectory(2)), [0.2, 0.3, 0.5])


def in_deltas(tmp_path, models, granularity="model"):
    names = group_names(models[0], granularity)
    return Deltas(tmp_path / "deltas", models.__getitem__, len(models), names)


def test_group_names_are_layers_then_the_rest():
    assert group_names(tree(0), "model") == ["model"]
    assert group_names(tree(0), "layer") == [
        "layer 0", "layer 1", "layer 2", "embedding", "final_norm",
    ]  # fmt: skip


@pytest.mark.parametrize("weights", [[0.2, 0.5, 0.3], [1.3, -0.8, 0.4]])
def test_deltas_on_disk_merge_like_trees_in_memory(tmp_path, weights):
    models = trajectory(3)
    with in_deltas(tmp_path, models) as deltas:
        merged = deltas.merge(np.asarray([weights]))
    assert error_in_spacings(merged, in_numpy(models, weights)) <= bound(len(models))
    assert not (tmp_path / "deltas").exists()


def test_each_layer_has_its_own_weights(tmp_path):
    models = trajectory(4)
    weights = np.random.default_rng(1).dirichlet(np.ones(4), L + 2)
    with in_deltas(tmp_path, models, "layer") as deltas:
        merged = deltas.merge(weights)
    for layer in range(L):
        wanted = in_numpy(models, weights[layer])["layers"]
        part = jax.tree.map(lambda x, i=layer: x[i], merged["layers"])
        wanted = jax.tree.map(lambda x, i=layer: x[i], wanted)
        assert error_in_spacings(part, wanted) <= 2
    for group, name in ((L, "embedding"), (L + 1, "final_norm")):
        wanted = in_numpy(models, weights[group])[name]
        assert error_in_spacings(merged[name], wanted) <= 2


def test_equal_rows_of_layer_weights_are_model_weights(tmp_path):
    models, row = trajectory(3), np.asarray([0.2, 0.5, 0.3])
    with in_deltas(tmp_path, models) as deltas:
        one = deltas.merge(row[None])
    with in_deltas(tmp_path, models, "layer") as deltas:
        many = deltas.merge(np.tile(row, (L + 2, 1)))
    assert_bits_equal(one, many)


@pytest.mark.parametrize("granularity", ["model", "layer"])
@pytest.mark.parametrize("limit", [1, 250, 2**30])
def test_parts_merge_bit_for_bit_like_deltas(tmp_path, granularity, limit):
    models, asked = trajectory(4), []
    names = group_names(models[0], granularity)
    weights = np.random.default_rng(2).dirichlet(np.ones(4), len(names))
    weights[:, 2] = 0.0
    if granularity == "layer":
        # Of the embedding, only theta_0 has a weight: -0.0 stays.
        weights[L] = [1.0, 0.0, 0.0, 0.0]
        models[0]["embedding"] = models[0]["embedding"].at[0, 0].set(-0.0)

    def read(k, part, first):
        assert (first is None) == (k == 0)
        asked.append((k, len(jax.tree.leaves(part))))
        leaves = leaves_by_path(models[k])
        return jax.tree.map_with_path(
            lambda path, _: leaves[tuple(key.key for key in path)], part
        )

    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=x.sharding),
        models[0],
    )
    merged = merge_parts(read, target, weights, names, limit)
    with in_deltas(tmp_path, models, granularity) as deltas:
        assert_bits_equal(merged, deltas.merge(weights))
    # 140, 20, 180 and 60 bytes.
    sizes = {1: [1, 1, 1, 1], 250: [2, 2], 2**30: [4]}[limit]
    whole = [(k, size) for size in sizes for k in (0, 1, 3)]
    if granularity == "layer" and limit == 1:
        # The embedding is a part of its own.
        whole[1:3] = []
    assert asked == whole


def test_each_checkpoint_is_restored_once_in_order(tmp_path):
    models, asked = trajectory(4), []

    def restore(k):
        asked.append(k)
        return models[k]

    with Deltas(tmp_path / "deltas", restore, 4, ["model"]) as deltas:
        deltas.merge(np.full((1, 4), 0.25))
        deltas.merge(np.full((1, 4), 0.25))
    assert asked == [0, 1, 2, 3]


def test_leaves_come_back_as_written(tmp_path):
    models = trajectory(3)
    with in_deltas(tmp_path, models) as deltas:
        assert_bits_equal(deltas.leaf(0, ("embedding",)), models[0]["embedding"])
        wanted = models[2]["embedding"] - models[0]["embedding"]
        assert_bits_equal(deltas.leaf(2, ("embedding",)), wanted)


def test_old_files_in_the_scratch_folder_are_not_read(tmp_path):
    in_deltas(tmp_path, trajectory(3)[::-1])
    models = trajectory(3)
    with in_deltas(tmp_path, models) as deltas:
        assert_bits_equal(deltas.leaf(0, ("embedding",)), models[0]["embedding"])


@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_weight_gradient_is_the_inner_product_with_the_deltas(tmp_path, granularity):
    models, gradient = trajectory(4), tree(50, scale=1.0)
    with in_deltas(tmp_path, models, granularity) as deltas:
        found = deltas.weight_gradient(gradient)

    def dot(k, pick):
        parts = jax.tree.map(
            lambda g, x, b: np.asarray(g, np.float64)
            * np.asarray(x - b, np.float64),
            gradient, models[k], models[0],
        )  # fmt: skip
        return sum(x.sum() for x in jax.tree.leaves(pick(parts)))

    if granularity == "model":
        picks = [lambda parts: parts]
    else:
        picks = [
            lambda parts, i=i: jax.tree.map(lambda x: x[i], parts["layers"])
            for i in range(L)
        ] + [lambda parts: parts["embedding"], lambda parts: parts["final_norm"]]
    wanted = np.asarray([[0] + [dot(k, p) for k in (1, 2, 3)] for p in picks])
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize(
    "weights, k",
    [
        ([[0, 1, 0]], 1), ([[1, 0]], 0), ([[0.5, 0.5]], None), ([[0, 1], [0, 1]], 1),
        ([[0, 1], [1, 0]], None), ([[1.0, 1e-17]], None), ([[2.0, 0.0]], None),
    ],
)  # fmt: skip
def test_one_hot_index(weights, k):
    assert one_hot_index(np.asarray(weights, np.float64)) == k


def test_signal_to_bfloat16_rounding_in_numpy():
    import ml_dtypes

    models = trajectory(3)
    merged, _ = weighted_sum(iter(models), [0.2, 0.3, 0.5])
    signal = error = 0.0
    for m, b in zip(jax.tree.leaves(merged), jax.tree.leaves(models[0])):
        m, b = np.asarray(m), np.asarray(b)
        signal += np.abs(m.astype(np.float64) - b).sum()
        rounded = m.astype(ml_dtypes.bfloat16).astype(np.float64)
        error += np.abs(rounded - m).sum()
    found = signal_to_rounding(merged, models[0], "bfloat16")
    np.testing.assert_allclose(found, signal / error, rtol=1e-4)
    # Deltas of 2e-5 on weights of 0.02: drowned, as the specification measured.
    assert found < 1


def test_signal_to_float32_rounding_is_a_quarter_of_the_spacing():
    models = trajectory(3)
    merged, found = weighted_sum(iter(models), [0.2, 0.3, 0.5])
    signal = error = 0.0
    for m, b in zip(jax.tree.leaves(merged), jax.tree.leaves(models[0])):
        m, b = np.asarray(m), np.asarray(b)
        signal += np.abs(m.astype(np.float64) - b).sum()
        error += np.spacing(np.abs(m)).astype(np.float64).sum() / 4
    np.testing.assert_allclose(found, signal / error, rtol=1e-4)
    assert found > 1000


def test_zeros_are_not_rounded():
    """Gemma's norms are stored as differences from 1: zeros at first."""
    base = {"a": jnp.zeros(1000), "b": jnp.full(10, 0.02)}
    merged = {"a": jnp.zeros(1000), "b": jnp.full(10, 0.02001)}
    error = np.spacing(np.float32(0.02001)) / 4 * 10
    signal = (np.float64(np.float32(0.02001)) - np.float32(0.02)) * 10
    found = signal_to_rounding(merged, base, "float32")
    np.testing.assert_allclose(found, signal / error, rtol=1e-4)


def test_nothing_rounded_is_infinite():
    base = {"a": jnp.zeros(3), "b": jnp.ones(3)}
    merged = {"a": jnp.zeros(3), "b": jnp.full(3, 2.0)}
    assert signal_to_rounding(merged, base, "bfloat16") == float("inf")


def test_rounding_to_bfloat16_is_measured_as_numpy_has_it():
    rng = np.random.default_rng(0)
    base = {"a": rng.standard_normal((64, 48, 9)).astype(np.float32)}
    x = base["a"] + np.float32(1e-3) * rng.standard_normal((64, 48, 9))
    x = x.astype(np.float32)
    error = np.abs(x.astype(jnp.bfloat16).astype(np.float32) - x).sum(dtype=np.float64)
    want = np.abs(x - base["a"]).sum(dtype=np.float64) / error
    found = signal_to_rounding({"a": jnp.asarray(x)}, base, "bfloat16")
    assert found == pytest.approx(want, rel=1e-5) and 0.1 < found < 10
    whole = {"a": jnp.ones((3, 5))}
    assert signal_to_rounding(whole, whole, "bfloat16") == float("inf")
