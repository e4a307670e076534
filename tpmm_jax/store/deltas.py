"""Steps stored as rounded differences to step 0.

    stored = bfloat16(theta_k - theta_0),    restored = theta_0 + float32(stored)

Everything here is elementwise, so a restore gives the same bits on every mesh.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float32

from tpmm_jax.errors import BadInput


def stored_dtype(dtype: Any) -> Any:
    """bfloat16 for float32; other dtypes are stored as they are."""
    return jnp.bfloat16 if jnp.dtype(dtype) == jnp.float32 else dtype


@jax.jit
def _difference(
    theta: Float32[Array, "..."], theta_0: Float32[Array, "..."]
) -> BFloat16[Array, "..."]:
    difference = theta - theta_0
    # Some accelerators flush subnormals and some do not; stored ones would restore
    # to different bits there.
    tiny = np.float32(jnp.finfo(jnp.float32).tiny)
    kept = jnp.where(jnp.abs(difference) < tiny, np.float32(0), difference)
    return kept.astype(jnp.bfloat16)


# Not in one jit with `_difference`: XLA may drop a float32 -> bfloat16 -> float32
# round trip and so compute something that was never stored.
def _sum(
    theta_0: Float32[Array, "..."], stored: BFloat16[Array, "..."]
) -> Float32[Array, "..."]:
    stored_f32 = stored.astype(jnp.float32)
    return jnp.where(stored_f32 == 0, theta_0, theta_0 + stored_f32)


_sum_in_place = jax.jit(_sum, donate_argnums=0)
_sum_beside = jax.jit(_sum)


def split(name: str, leaf: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(what to store, what a restore will give) of one leaf; consumes `first`.

    Raises:
      BadInput: the difference is not finite; names the leaf.
    """
    if leaf.dtype != jnp.float32:
        return leaf, leaf
    stored = _difference(leaf, first)
    if not bool(jnp.isfinite(stored).all()):
        raise BadInput(
            f"leaf {name} differs from step 0 by NaN or infinity, which cannot be "
            "stored as a difference; the training diverged before this step"
        )
    return stored, join(first, stored)


def join(first: jax.Array, stored: jax.Array, *, keep: bool = False) -> jax.Array:
    """theta_0 + stored, or `stored` if it is not a difference; consumes `first`.

    Args:
      keep: leaves `first` as it is.
    """
    if first.dtype != jnp.float32:
        return stored
    # Taken first: the donated array may not be asked afterwards.
    where = first.sharding
    add = _sum_beside if keep else _sum_in_place
    return jax.device_put(add(first, stored), where)
