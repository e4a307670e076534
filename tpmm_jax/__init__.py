"""Iterative preference optimisation in JAX.

import tpmm_jax as tpmm
model = tpmm.load("org/name")
tpmm.generate(model, ["Once upon a time"])

The functions are imported when they are first used: a command line's --help does not
wait for JAX.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpmm_jax.facade import (
        generate,
        log_probs,
        logits,
        merge,
        merge_experts,
        score,
        score_tokens,
        stream,
        upcycle,
    )
    from tpmm_jax.runs import read_run, run
    from tpmm_jax.weights.loading import load, load_reward
    from tpmm_jax.weights.saving import save
    from tpmm_jax.weights.source import Model

__version__ = "0.2.0"

__all__ = [
    "Model",
    "generate",
    "load",
    "load_reward",
    "log_probs",
    "logits",
    "merge",
    "merge_experts",
    "read_run",
    "run",
    "save",
    "score",
    "score_tokens",
    "stream",
    "upcycle",
]

_ELSEWHERE = {
    "Model": "weights.source",
    "read_run": "runs",
    "run": "runs",
    "load": "weights.loading",
    "load_reward": "weights.loading",
    "save": "weights.saving",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    where = _ELSEWHERE.get(name, "facade")
    found = getattr(importlib.import_module(f"tpmm_jax.{where}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


# transformers advises on import to install PyTorch, which nothing here needs.
logging.getLogger("transformers").addFilter(
    lambda record: "PyTorch was not found" not in record.getMessage()
)
