"""Bytes that arrays take on one device."""

import math
from typing import Any

import jax


def bytes_on_device(tree: Any) -> int:
    """Returns the bytes of a tree's shards on one device; what is no array takes none.

    Args:
      tree: arrays, or jax.ShapeDtypeStruct with shardings.
    """

    def size(x: Any) -> int:
        if not hasattr(x, "shape"):
            return 0
        shape = x.shape
        if x.sharding is not None:
            shape = x.sharding.shard_shape(shape)
        return math.prod(shape) * x.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))
