"""The checkpoints of a trajectory as memory-mapped deltas on disk.

Learning fusion weights through the network reads every checkpoint twice per step. They
are written once, theta_0 and theta_k - theta_0 in float32, and read back one leaf of
one checkpoint at a time: neither device memory nor the process's own memory grows with
K. Each process writes and reads the shards of its own devices.
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
    base_scales,
    dot_leaf,
    groups_of,
    leaves_by_path,
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
        self.structure = jax.tree.structure(base)
        self.shapes = {
            path: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=x.sharding)
            for path, x in leaves_by_path(base).items()
        }
        self._write(0, base)
        del base
        for k in range(1, count):
            self._write(k, restore(k))

    def __enter__(self) -> "Deltas":
        return self

    def __exit__(self, *_: Any) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _write(self, k: int, params: Params) -> None:
        (self.directory / str(k)).mkdir(parents=True)
        for path, leaf in leaves_by_path(params).items():
            if k > 0:
                leaf = subtract_leaf(leaf, self.leaf(0, path))
            for shard in leaf.addressable_shards:
                file = self._file(k, path, shard.index)
                if not file.exists():
                    np.save(file, np.asarray(shard.data, np.float32))

    def _file(self, k: int, path: Path, index: tuple[slice, ...]) -> pathlib.Path:
        """Returns the file of a shard at ``index`` of its leaf."""
        place = "_".join(
            f"{s.start or 0}-{'' if s.stop is None else s.stop}" for s in index
        )
        return self.directory / str(k) / f"{'.'.join(path)}.{place}.npy"

    def leaf(self, k: int, path: Path) -> jax.Array:
        """Returns theta_0's leaf (k = 0) or that of theta_k - theta_0, float32."""
        target = self.shapes[path]
        where = target.sharding.addressable_devices_indices_map(target.shape)
        shards = [
            jax.device_put(np.load(self._file(k, path, index), mmap_mode="r"), device)
            for device, index in where.items()
        ]
        return jax.make_array_from_single_device_arrays(
            target.shape, target.sharding, shards
        )

    def merge(self, weights_GK: np.ndarray) -> Params:
        """Returns theta_0 sum_k w_k + sum_k w_k (theta_k - theta_0), float32."""
        scales_GK = base_scales(weights_GK)
        leaves = []
        for path in self.shapes:
            scales = scales_GK[groups_of(path, self.names)]
            total = self.leaf(0, path)
            total = add_leaf(total, total, scales[:, 0])
            for k in range(1, self.count):
                if not scales[:, k].any():
                    continue
                total = add_leaf(total, self.leaf(k, path), scales[:, k])
                # Without the wait, K leaves could be on their way at once.
                total.block_until_ready()
            leaves.append(total)
        return jax.tree.unflatten(self.structure, leaves)

    def weight_gradient(self, gradient: Params) -> np.ndarray:
        """Returns dL/dw [G, K] float64 from dL/dtheta: <g, theta_k - theta_0>.

        The constant <g, theta_0> is left out: it cancels in the softmax.
        """
        out = np.zeros((len(self.names), self.count))
        for k in range(1, self.count):
            for path, leaf in leaves_by_path(gradient).items():
                groups = groups_of(path, self.names)
                out[groups, k] += dot_leaf(leaf, self.leaf(k, path), len(out[groups]))
        return out
