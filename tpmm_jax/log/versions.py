"""The versions that a result depends on."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

LIBRARIES = (
    "tpmm_jax",
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "numpy",
)


def versions() -> dict[str, str]:
    """Returns {name: version} of Python and the libraries."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        found[name] = importlib.metadata.version(name)
    return found


def changed_versions(before: Any, now: Mapping[str, Any]) -> list[str]:
    """Returns such as "jax 0.10.2 → 0.11.0" of each that differs.

    Args:
      before: as ``versions`` gave it; what is no mapping says nothing.
    """
    known = before if isinstance(before, Mapping) else {}
    return [
        f"{name} {known[name]} → {version}"
        for name, version in now.items()
        if known.get(name, version) != version
    ]
