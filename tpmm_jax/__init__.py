"""Iterative preference optimisation in JAX.

import tpmm_jax as tpmm
model = tpmm.load("org/name")
tpmm.generate(model, ["Once upon a time"])
"""

from tpmm_jax.facade import generate, log_probs, logits, merge
from tpmm_jax.loading import Model, load, save

__version__ = "0.1.0"

__all__ = ["Model", "generate", "load", "log_probs", "logits", "merge", "save"]
