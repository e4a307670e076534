"""optax's L-BFGS in a compiled loop, for the small problems of fusion weights."""

from collections.abc import Callable

import jax
import optax


def minimise(
    loss: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    residual: Callable[[jax.Array], jax.Array],
    *,
    tolerance: float,
    most: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns where a loss is lowest, and the residual there.

    Args:
      residual: how far a point is from optimal; the loop ends at or below
        ``tolerance``, or after ``most`` steps.
    """
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: tuple) -> tuple:
        x, state, _, number = carry
        value, grad = value_and_grad(x, state=state)
        updates, state = solver.update(
            grad, state, x, value=value, grad=grad, value_fn=loss
        )
        x = optax.apply_updates(x, updates)
        return x, state, residual(x), number + 1

    def unfinished(carry: tuple) -> jax.Array:
        _, _, off, number = carry
        return (number < most) & (off > tolerance)

    carry = start, solver.init(start), residual(start), 0
    x, _, off, _ = jax.lax.while_loop(unfinished, step, carry)
    return x, off
