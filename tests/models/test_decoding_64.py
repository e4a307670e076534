"""Decoding writes its cache in JAX's 64-bit mode too."""

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.models.layers import write_cache


def test_slots_of_another_width():
    with jax.enable_x64(True):
        cache = (jnp.zeros((2, 1, 4, 1, 2), jnp.float32),) * 2
        new = jnp.ones((1, 1, 1, 2), jnp.float32)
        keys, _ = write_cache(cache, new, new, jnp.int32(1), jnp.asarray(3))
    np.testing.assert_array_equal(keys[1, 0, 3], [[1, 1]])
    assert keys.sum() == 2 and keys.dtype == jnp.float32
