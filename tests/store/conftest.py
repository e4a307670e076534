"""Small parameter trees on meshes of the eight virtual devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")


def mesh(*sizes: int, devices: int = 8) -> jax.sharding.Mesh:
    """An Auto mesh over the first `devices` devices."""
    kinds = (AxisType.Auto,) * 3
    return jax.make_mesh(sizes, AXES, kinds, devices=jax.devices()[:devices])


def specs() -> dict[str, Any]:
    """Where the leaves of `policy` lie."""
    return {
        "layers": {"up": PartitionSpec(None, "fsdp", "tensor")},
        "embed": PartitionSpec("fsdp"),
        "norm": PartitionSpec(),
        "scale": PartitionSpec(),
    }


def policy(step: int, mesh: jax.sharding.Mesh, width: int = 16) -> dict[str, Any]:
    """theta_step: ranks 0 to 3, odd and even sizes, theta_0 plus a small change."""

    def leaf(seed: int, *shape: int) -> jax.Array:
        key = jax.random.key(seed)
        change = 1e-2 * jax.random.normal(jax.random.fold_in(key, step), shape)
        return jax.random.normal(key, shape) + min(step, 1) * change

    tree = {
        "layers": {"up": leaf(1, 3, width, 8)},
        "embed": leaf(2, 24, 5),
        "norm": leaf(3, 7),
        "scale": leaf(4),
    }
    return jax.device_put(tree, jax.tree.map(lambda s: NamedSharding(mesh, s), specs()))


def target(mesh: jax.sharding.Mesh, width: int = 16) -> dict[str, Any]:
    """What a restore of `policy` onto a mesh asks for."""
    shapes = jax.eval_shape(lambda: policy(0, mesh, width))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(
            x.shape, jnp.float32, sharding=NamedSharding(mesh, s)
        ),
        shapes,
        specs(),
    )


class Lab:
    """The helpers above, for tests that take the fixture `lab`."""

    mesh = staticmethod(mesh)
    policy = staticmethod(policy)
    target = staticmethod(target)


@pytest.fixture(scope="session")
def lab() -> type[Lab]:
    return Lab


@pytest.fixture(scope="session")
def mesh_222() -> jax.sharding.Mesh:
    return mesh(2, 2, 2)


@pytest.fixture
def same_bits() -> Callable[[Any, Any], bool]:
    """True if two trees have equal structure, dtypes and bits."""

    def compare(a: Any, b: Any) -> bool:
        if jax.tree.structure(a) != jax.tree.structure(b):
            return False
        a, b = jax.device_get((a, b))
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return all(
            x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
            for x, y in pairs
        )

    return compare
