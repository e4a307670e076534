"""Merges commute with permutation; equal trees merge to themselves, whatever is drawn.

Weights permuted with their checkpoints give the same merge, though another checkpoint
then is the anchor that the deltas are taken from.
"""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tpmm_jax.merging import Deltas, group_names, weighted_sum

L = 2
EPSILON = float(np.finfo(np.float32).eps)
GRANULARITIES = st.sampled_from(["model", "layer"])
few = settings(max_examples=25, deadline=None, derandomize=True)


# What a case is made from: K, granularity, seed, decades, near each other, any sign.
drawn = (
    st.integers(2, 5),
    GRANULARITIES,
    st.integers(0, 2**32 - 1),
    st.integers(-5, 1),
    st.booleans(),
    st.booleans(),
)


def made(K, granularity, seed, decades, near, signed):
    """Returns models, weights_GK of sum 1 (or any sign and sum), an order."""
    rng = np.random.default_rng(seed)
    distance = 1e-3 if near else 1.0
    base = tree(rng, 10.0**decades)
    models = [base]
    for _ in range(1, K):
        moved = tree(rng, distance * 10.0**decades)
        models.append(jax.tree.map(jnp.add, base, moved))
    groups = len(group_names(base, granularity))
    weights_GK = rng.dirichlet(np.ones(K), groups)
    if signed:
        weights_GK = rng.normal(size=(groups, K))
    return models, weights_GK, rng.permutation(K)


def tree(rng, scale):
    def leaf(*shape):
        return jnp.asarray(rng.normal(0, scale, shape).astype(np.float32))

    return {
        "embedding": leaf(7, 3),
        "layers": {"mlp": leaf(L, 3, 5), "norm": leaf(L, 3)},
    }


def merge(models, weights_GK, granularity):
    names = group_names(models[0], granularity)
    with tempfile.TemporaryDirectory() as folder:
        where = pathlib.Path(folder) / "deltas"
        with Deltas(where, models.__getitem__, len(models), names) as deltas:
            return deltas.merge(weights_GK)


def both_merges(models, weights_GK, granularity):
    """From disk, and in memory where a model has one weight."""
    yield merge(models, weights_GK, granularity)
    if granularity == "model":
        yield weighted_sum(models, list(weights_GK[0]))[0]


@few
@given(*drawn)
def test_merges_commute_with_permutation(K, granularity, seed, decades, near, signed):
    models, weights_GK, order = made(K, granularity, seed, decades, near, signed)
    permuted = [models[k] for k in order]
    largest = max(float(np.abs(x).max()) for m in models for x in jax.tree.leaves(m))
    # A rounding a term and one a delta, of terms no larger than these; twice.
    terms = np.abs(weights_GK).sum(axis=1).max() * 2 * largest
    bound = 2 * (len(models) + 1) * EPSILON * terms
    both = zip(
        both_merges(models, weights_GK, granularity),
        both_merges(permuted, weights_GK[:, order], granularity),
    )
    for one, other in both:
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
            assert np.abs(np.asarray(x) - np.asarray(y)).max() <= bound


@few
@given(*drawn)
def test_a_one_hot_merge_is_the_same_bits_in_any_order(
    K, granularity, seed, decades, near, signed
):
    models, _, order = made(K, granularity, seed, decades, near, signed)
    k = seed % K
    hot = [float(place == k) for place in range(len(models))]
    permuted = [models[place] for place in order]
    there = weighted_sum(permuted, [hot[place] for place in order])[0]
    for x, y, z in zip(
        *map(jax.tree.leaves, (weighted_sum(models, hot)[0], there, models[k]))
    ):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        assert np.asarray(x).tobytes() == np.asarray(z).tobytes()


@few
@given(*drawn)
def test_equal_trees_merge_to_themselves(K, granularity, seed, decades, near, signed):
    models, weights_GK, _ = made(K, granularity, seed, decades, near, signed)
    weights_GK = np.abs(weights_GK)
    weights_GK /= weights_GK.sum(axis=1, keepdims=True)
    same = [models[0]] * len(models)
    for merged in both_merges(same, weights_GK, granularity):
        for x, y in zip(jax.tree.leaves(merged), jax.tree.leaves(models[0])):
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
