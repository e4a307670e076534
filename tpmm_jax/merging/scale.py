"""The held-out loss of margins, at a given scale or at the one that fits best."""

import numpy as np

from tpmm_jax.merging.config import ReferenceConfig

# Of D; pairs that are all right have no best scale.
MAX_SCALE = 1.0e4


def objective(margins: np.ndarray, config: ReferenceConfig) -> float:
    """Returns mean[-log sigma(c D)]: c = beta if fixed, else the best c >= 0."""
    scale = config.beta if config.objective == "fixed" else fitted_scale(margins)
    return float(np.mean(np.logaddexp(0, -scale * margins)))


def fitted_scale(margins: np.ndarray) -> float:
    """Returns the c >= 0 with the least mean -log sigma(c D), at most 1e4."""
    low, high = 0.0, MAX_SCALE

    def slope(c: float) -> float:
        return float(-np.mean(margins * np.exp(-np.logaddexp(0, c * margins))))

    if slope(low) >= 0:
        return low
    if slope(high) < 0:
        return high
    # Halved until the floats between them are used up.
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return low
