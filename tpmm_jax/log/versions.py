"""The versions that a result depends on."""

import importlib.metadata
import platform

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
