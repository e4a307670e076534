"""Trees by the names of their leaves: "decoder/layers/mlp/up"."""

import difflib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput
from tpmm_jax.store.fingerprint import layout


def flatten_params(params: Any) -> dict[str, Any]:
    """name -> leaf of a nested dict; leaves without a dtype become numpy arrays.

    Raises:
      BadInput: not a nested dict with plain string keys, or a leaf that cannot be
        stored (no elements, not numeric); names the leaf.
    """
    flat: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys: list[Any] = [getattr(entry, "key", None) for entry in path]
        shown = jax.tree_util.keystr(path)
        for key in keys:
            # "/" parts the names here, and "." does inside Orbax.
            if not isinstance(key, str) or not key or "/" in key or "." in key:
                raise BadInput(
                    f"params{shown}: wanted a nested dict whose keys are strings "
                    "without '/' and '.'"
                )
        if not hasattr(leaf, "dtype"):
            leaf = np.asarray(leaf)
        name = "/".join(keys)
        _check_leaf(name, leaf)
        flat[name] = leaf
    if not flat:
        raise BadInput("params hold no arrays")
    return flat


def is_storable(dtype: Any) -> bool:
    """True for numbers and booleans of at most 32 bits, JAX's own widths."""
    numeric = jnp.issubdtype(dtype, np.number) or dtype == np.bool_
    complex_ = jnp.issubdtype(dtype, np.complexfloating)
    return bool(numeric) and not complex_ and dtype.itemsize <= 4


def _check_leaf(name: str, leaf: Any) -> None:
    if not is_storable(leaf.dtype):
        raise BadInput(
            f"leaf {name} is {leaf.dtype}; wanted numbers of at most 32 bits"
        )
    if 0 in leaf.shape:
        raise BadInput(f"leaf {name} has shape {leaf.shape}: no elements to store")


def nest(flat: Mapping[str, Any]) -> Params:
    """The nested dict of `flatten_params`."""
    tree: Params = {}
    for name, leaf in flat.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def like(target: Any, flat: Mapping[str, Any]) -> Any:
    """`flat` in the structure of `target`, which has the same names."""
    names = flatten_params(target)
    return jax.tree.unflatten(jax.tree.structure(target), [flat[n] for n in names])


def check_same(
    flat: Mapping[str, Any],
    saved: Mapping[str, Any],
    *,
    came: str,
    against: str,
    part: bool = False,
) -> None:
    """Compares leaves by name with a saved `layout` (name -> [dtype, shape]).

    Args:
      part: some of the saved leaves may be missing.

    Raises:
      BadInput: names the first leaf that differs and says how.
    """
    found = layout(flat)
    for name in sorted(found.keys() if part else found.keys() | saved.keys()):
        if name not in saved:
            raise BadInput(
                f"leaf {name} of the {came} is not in {against}; {_near(name, saved)}"
            )
        if name not in found:
            raise BadInput(
                f"leaf {name} of {against} is missing from the {came}; is it the "
                "same architecture?"
            )
        for what, have, want in zip(("dtype", "shape"), found[name], saved[name]):
            if have != want:
                raise BadInput(
                    f"leaf {name}: the {came} has {what} {have}, {against} has {want}; "
                    "nothing is cast or reshaped, use the same architecture and dtype"
                )


def _near(name: str, saved: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(saved), n=3)
    return f"the nearest names are {', '.join(close)}" if close else "see its config"
