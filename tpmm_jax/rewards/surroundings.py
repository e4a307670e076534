"""What code of a user must leave as it found it: the directory, JAX's settings."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax

from tpmm_jax.errors import BadInput

# Settings of JAX that a run's numbers and random draws depend on.
SETTINGS = (
    "jax_default_matmul_precision", "jax_default_prng_impl", "jax_disable_jit",
    "jax_enable_custom_prng", "jax_enable_x64", "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)  # fmt: skip


@contextlib.contextmanager
def left_alone(what: str) -> Iterator[None]:
    """Puts back what a user's code changed for the whole process, and refuses it.

    The rest of a run would be written to another directory, or computed and drawn
    otherwise, from then on.

    Args:
      what: as messages give it, such as "scorer my_scores:fluency".

    Raises:
      BadInput: names what changed.
    """
    directory, settings = _directory(), _settings()
    changed = ""
    try:
        yield
    finally:
        if (now := _directory()) != directory and directory is not None:
            os.chdir(directory)
            changed = f"moved the process to the directory {now}: give it full paths"
        for name, value in _settings().items():
            if value != settings[name]:
                jax.config.update(name, settings[name])
                changed = (
                    f"set {name} to {value} for the whole process: set it in a with "
                    "statement, or work in a process of its own"
                )
    if changed:
        raise BadInput(f"{what} {changed}")


def _directory() -> str | None:
    """Returns the current directory; None where it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _settings() -> dict[str, Any]:
    return {name: getattr(jax.config, name) for name in SETTINGS}
