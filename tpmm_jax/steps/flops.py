"""Floating-point operations of a program, read from what it is traced to.

The compiler's own count takes the body of a scan once, however often it runs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from tpmm_jax.mesh import EXPERT

# Products in cuDNN's attention by the names of JAX's primitives; what the backward pass
# repeats of the forward one is not counted.
CUDNN = {
    "dot_product_attention_fwd_wrapper": 2,
    "dot_product_attention_bwd_wrapper": 4,
}


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """Returns the operations of a function's matrix products, 2 a multiply-add.

    Products are nearly all that a transformer computes. A while loop, whose length is
    not known, counts once; of a cond the dearest branch.

    >>> x = jax.ShapeDtypeStruct((8, 16), "float32")
    >>> count_flops(lambda x: x @ x.T, x)
    2048.0

    Args:
      args: arrays, or jax.ShapeDtypeStruct.
    """
    return program_flops(jax.make_jaxpr(function)(*args).jaxpr)


def program_flops(jaxpr: Jaxpr, turns: int = 1) -> float:
    """Returns what ``count_flops`` does, of a function that was traced.

    Args:
      turns: of a while loop.
    """
    return float(sum(_of_equation(equation, turns) for equation in jaxpr.eqns))


def _of_equation(equation: JaxprEqn, turns: int) -> float:
    name = equation.primitive.name
    inner = [program_flops(x, turns) for x in _jaxprs(equation)]
    if name == "dot_general":
        return _of_product(equation)
    if name == "ragged_dot_general":
        return _of_grouped_product(equation)
    if name in CUDNN:
        query: Any = equation.invars[0].aval
        key: Any = equation.invars[1].aval
        return CUDNN[name] * 2.0 * math.prod(query.shape) * key.shape[1]
    if name == "shard_map":
        return _shares(equation.params["mesh"]) * sum(inner)
    if name == "scan":
        return equation.params["length"] * sum(inner)
    if name == "while":
        return turns * sum(inner)
    if name == "cond":
        return max(inner)
    return sum(inner)


def _of_product(equation: JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    return _of_lengths(equation, contracted)


def _of_lengths(equation: JaxprEqn, contracted: Sequence[int]) -> float:
    left: Any = equation.invars[0].aval
    out: Any = equation.outvars[0].aval
    lengths = [left.shape[axis] for axis in contracted]
    return 2 * math.prod(out.shape) * math.prod(lengths)


def _of_grouped_product(equation: JaxprEqn) -> float:
    """Each row with the matrix of its group, or a matrix for each group of rows."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    flops = _of_lengths(equation, contracted)
    if numbers.lhs_ragged_dimensions[0] in contracted:
        # A row adds to one group alone.
        sizes: Any = equation.invars[2].aval
        flops /= sizes.shape[-1]
    return flops


def _shares(mesh: Any) -> int:
    """Returns how often a program of one device runs.

    Devices of EXPERT are given the same rows, and multiply those of their own experts.
    """
    return math.prod(mesh.shape.values()) // dict(mesh.shape).get(EXPERT, 1)


def _jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yields the programs inside an equation."""
    for value in equation.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one
