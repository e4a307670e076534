"""The device mesh (data, fsdp, tensor, expert) and how arrays lie on it.

The mesh is in Auto mode: a sharding is stated where an array enters, where a
parameter is declared, and at a few places in the forward pass; the compiler
fills in the rest. An axis that does not divide a dimension is dropped from the
spec (the dimension is then replicated), so no shape is ever refused.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tpmm_jax.errors import BadInput
from tpmm_jax.hosts import acts_alone

DATA, FSDP, TENSOR, EXPERT = "data", "fsdp", "tensor", "expert"
AXES = (DATA, FSDP, TENSOR, EXPERT)
# Rows of a batch are split over both: fsdp is data parallelism with split weights.
BATCH = (DATA, FSDP)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; one of them may be -1, "all that remain".

    Attributes:
      data: devices that hold whole weights and their own rows.
      fsdp: devices that hold a part of every weight, and their own rows.
      tensor: devices that compute some heads and a part of each feed-forward.
      expert: of a mixture of experts, devices that hold some of the routed experts.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1


def first_device(mesh: Mesh | None) -> Any:
    """Returns a device of the mesh; of no mesh the default one."""
    if mesh is not None:
        return mesh.devices.flat[0]
    given: Any = jax.config
    device = given.jax_default_device
    return device if isinstance(device, jax.Device) else jax.devices(device)[0]


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of ``config`` over ``devices``.

    Args:
      devices: default: all; in a function of the user's, which process 0 alone calls,
        those of that process.

    Raises:
      BadInput: the sizes do not multiply to the number of devices.
    """
    if devices is None:
        devices = jax.local_devices() if acts_alone() else jax.devices()
    devices = list(devices)
    sizes = [config.data, config.fsdp, config.tensor, config.expert]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise BadInput(
            f"mesh sizes are ({', '.join(AXES)}) = {tuple(sizes)}; each must be a "
            "positive number, and at most one -1 (all remaining devices)"
        )
    known = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise BadInput(
            f"a mesh of data={config.data}, fsdp={config.fsdp}, "
            f"tensor={config.tensor}, expert={config.expert} does not fit "
            f"{len(devices)} devices; set mesh.data=-1, or sizes whose product is "
            f"{len(devices)}"
        )
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, kinds, devices=devices)


def fit_spec(mesh: Mesh, shape: Sequence[int], axes: Sequence[Any]) -> PartitionSpec:
    """Returns the spec ``axes``, without the mesh axes that do not divide it."""
    fitted = []
    for size, names in zip(shape, axes, strict=True):
        names = (names,) if isinstance(names, str) else tuple(names or ())
        kept: list[str] = []
        for name in names:
            if size % math.prod(mesh.shape[n] for n in (*kept, name)) == 0:
                kept.append(name)
        fitted.append(tuple(kept) if len(kept) > 1 else kept[0] if kept else None)
    return PartitionSpec(*fitted)


def sharding(mesh: Mesh, shape: Sequence[int], *axes: Any) -> NamedSharding:
    """Returns where an array of ``shape`` lies; missing trailing axes: replicated."""
    axes = axes + (None,) * (len(shape) - len(axes))
    return NamedSharding(mesh, fit_spec(mesh, shape, axes))


def constrain(x: jax.Array, mesh: Mesh | None, *axes: Any) -> jax.Array:
    """States inside jit how ``x`` lies on the mesh; without a mesh, nothing."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, sharding(mesh, x.shape, *axes))


def gather(x: jax.Array, mesh: Mesh | None, *axes: Any) -> jax.Array:
    """States inside jit that a weight is whole where it is used, but for TENSOR.

    Left to itself the TPU compiler sends parts of it round while it multiplies, and
    reads and writes the product once for each part.

    Args:
      axes: how the weight lies; its gradient lies so too.
    """
    if mesh is None or mesh.shape[FSDP] == 1:
        return x
    return _gather(mesh, axes, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(mesh: Mesh, axes: tuple[Any, ...], x: jax.Array) -> jax.Array:
    return constrain(x, mesh, *(None if axis == FSDP else axis for axis in axes))


def _gather_forward(mesh: Mesh, axes: tuple[Any, ...], x: jax.Array) -> Any:
    return _gather(mesh, axes, x), None


def _gather_backward(
    mesh: Mesh, axes: tuple[Any, ...], _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    return (constrain(gradient, mesh, *axes),)


_gather.defvjp(_gather_forward, _gather_backward)


def put_batch(batch: Any, mesh: Mesh | None) -> Any:
    """Moves a pytree of host arrays to the devices, leading axis over BATCH."""
    if mesh is None:
        return jax.tree.map(jax.numpy.asarray, batch)

    def put(x: Any) -> jax.Array:
        where = sharding(mesh, x.shape, BATCH)
        if where.is_fully_addressable:
            return jax.device_put(x, where)
        # Of several processes each gives its own shards; device_put would compare the
        # whole array between them.
        return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

    return jax.tree.map(put, batch)


def fill(mesh: Mesh | None, rows: int, sides: int = 1) -> int:
    """Returns to how many rows a batch is filled up, so that all devices share it.

    >>> fill(None, 6)
    6

    Devices that could not share one evenly would each compute the whole of it. Rows
    that are filled in have weight 0, or are left out of what is returned.

    Args:
      sides: sequences in a row: 2 of a pair.
    """
    if mesh is None:
        return rows
    shards = math.prod(mesh.shape[name] for name in BATCH)
    step = shards // math.gcd(shards, sides)
    return -(-rows // step) * step


def fetch(x: Any) -> np.ndarray:
    """Returns a whole array on every process, wherever its shards lie."""
    if isinstance(x, jax.Array) and not (
        x.is_fully_addressable or x.is_fully_replicated
    ):
        x = _replicate(x.sharding.mesh)(x)  # type: ignore[attr-defined]
    return np.asarray(x)


@functools.cache
def _replicate(mesh: Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


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
