"""A one-hot weighted sum is a copy: no arithmetic, nothing rounded."""

import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.merging import policy_is_reference, trees


def no_arithmetic(*_):
    raise AssertionError("arithmetic on a one-hot merge")


@pytest.mark.parametrize("k", range(3))
def test_a_one_hot_sum_does_no_arithmetic(monkeypatch, k):
    for name in ("scale_leaf", "add_leaf", "subtract_leaf", "signal_to_rounding"):
        monkeypatch.setattr(trees, name, no_arithmetic)
    # A float32 sum with the others would be nan.
    models = [{"a": jnp.full(3, jnp.inf)} for _ in range(3)]
    models[k] = {"a": jnp.asarray([-0.0, 1e-42, 3e38], jnp.float32)}
    weights = [float(i == k) for i in range(3)]
    merged, ratio = trees.weighted_sum(iter(models), weights)
    assert np.asarray(merged["a"]).tobytes() == np.asarray(models[k]["a"]).tobytes()
    assert ratio == float("inf")


def test_as_many_weights_as_models_are_asked_for_still():
    with pytest.raises(ValueError):
        trees.weighted_sum(iter([{"a": jnp.ones(2)}]), [1.0, 0.0])


@pytest.mark.parametrize(
    ("weights", "reset_every", "wanted"),
    [
        ([[0.0, 0.0, 1.0]], None, [0]),
        ([[0.0, 0.0, 1.0]], 2, [0, 2, 4]),
        ([[0.0, 1.0, 0.0]], None, []),
        ([[0.0, 0.5, 0.5]], None, []),
        ([[0.0, 1.0], [0.5, 0.5]], None, []),
        ([[1.0]], None, [0]),
    ],
)
def test_steps_at_which_the_policy_is_its_reference(weights, reset_every, wanted):
    weights_GK = np.asarray(weights)
    found = [s for s in range(6) if policy_is_reference(weights_GK, s, reset_every)]
    assert found == wanted
