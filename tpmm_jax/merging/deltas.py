"""The checkpoints of a trajectory as memory-mapped deltas on disk.

Learning fusion weights reads every checkpoint twice per step. They are written
once, theta_0 and theta_k - theta_0 in float32, and read back one leaf of one
checkpoint at a time: neither device memory nor the process's own memory grows
with K. Each process writes and reads the shards of its own devices.
"""

import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.merging.trees import (
    Path,
    add_leaf,
    dot_leaf,
    get_leaf,
    leaf_paths,
    leaf_weights,
    subtract_leaf,
)


class Deltas:
    """theta_0 and K - 1 deltas; a context manager that removes its files at the end.

    Args:
      directory: scratch space, emptied first.
      restore: returns the parameters of checkpoint k; called once each, in order.
      count: K.
      names: groups of the fusion weights (trees.group_names).
    """

    def __init__(
        self,
        directory: pathlib.Path,
        restore: Callable[[int], Params],
        count: int,
        names: list[str],
    ) -> None:
        self.directory, self.count, self.names = directory, count, names
        shutil.rmtree(directory, ignore_errors=True)
        base = restore(0)
        self.structure = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=x.sharding),
            base,
        )
        self.paths = leaf_paths(base)
        self._write(0, base)
        del base
        for k in range(1, count):
            self._write(k, restore(k))

    def __enter__(self) -> "Deltas":
        return self

    def __exit__(self, *_: Any) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _write(self, k: int, params: Params) -> None:
        folder = self.directory / str(k)
        folder.mkdir(parents=True)
        for number, path in enumerate(self.paths):
            leaf = get_leaf(params, path)
            if k > 0:
                leaf = subtract_leaf(leaf, self.leaf(0, path))
            for shard in leaf.addressable_shards:
                file = folder / f"{number}.{_slug(shard.index)}.npy"
                if not file.exists():
                    np.save(file, np.asarray(shard.data, np.float32))

    def leaf(self, k: int, path: Path) -> jax.Array:
        """Returns theta_0's leaf (k = 0) or that of theta_k - theta_0, float32."""
        target = get_leaf(self.structure, path)
        number = self.paths.index(path)
        where = target.sharding.addressable_devices_indices_map(target.shape)
        shards = []
        for device, index in where.items():
            file = self.directory / str(k) / f"{number}.{_slug(index)}.npy"
            shards.append(jax.device_put(np.load(file, mmap_mode="r"), device))
        return jax.make_array_from_single_device_arrays(
            target.shape, target.sharding, shards
        )

    def merge(self, weights_GK: np.ndarray) -> Params:
        """Returns theta_0 sum_k w_k + sum_k w_k (theta_k - theta_0), float32."""
        merged: Params = {}
        for path in self.paths:
            total = self.leaf(0, path)
            scale = leaf_weights(weights_GK.sum(axis=1) - 1, path, self.names)
            total = add_leaf(total, total, np.asarray(scale, np.float32))
            for k in range(1, self.count):
                weight = leaf_weights(weights_GK[:, k], path, self.names)
                total = add_leaf(total, self.leaf(k, path), weight.astype(np.float32))
                # Without the wait, K leaves could be on their way at once.
                total.block_until_ready()
            node = merged
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = total
        return merged

    def weight_gradient(self, gradient: Params) -> np.ndarray:
        """Returns dL/dw [G, K] float64 from dL/dtheta: <g, theta_k - theta_0>.

        The constant <g, theta_0> is left out: it cancels in the softmax.
        """
        out = np.zeros((len(self.names), self.count))
        by_layer = len(self.names) > 1
        for k in range(1, self.count):
            for path in self.paths:
                stacked = by_layer and path[0] == "layers"
                dots = dot_leaf(get_leaf(gradient, path), self.leaf(k, path), stacked)
                if stacked:
                    out[: len(dots), k] += dots
                else:
                    out[self.names.index(path[0]) if by_layer else 0, k] += dots[0]
        return out


def _slug(index: tuple[slice, ...]) -> str:
    """A shard's place in its array, as part of a file name."""
    return "_".join(f"{s.start or 0}-{'' if s.stop is None else s.stop}" for s in index)
