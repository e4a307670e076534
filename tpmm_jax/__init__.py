"""Iterative preference optimisation in JAX.

import tpmm_jax as tpmm
model = tpmm.load("org/name")
tpmm.generate(model, ["Once upon a time"])
"""

import os


def _import_transformers() -> None:
    """Imports transformers without its advice to install PyTorch."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        import transformers  # noqa: F401
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


_import_transformers()

from tpmm_jax.facade import generate, log_probs, logits, merge  # noqa: E402
from tpmm_jax.loading import Model, load, save  # noqa: E402

__version__ = "0.1.0"

__all__ = ["Model", "generate", "load", "log_probs", "logits", "merge", "save"]
