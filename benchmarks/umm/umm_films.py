"""What every run but the dense one trains with: films.py once more, from another start.

The model, the experts and the order are set by arms.py. The held-out pairs alone are
measured during a run, every 40 steps, so that all arms are stopped alike; the test sets
are read by measure.py, the same pairs for all arms and seeds.
"""

import pathlib
import sys
from dataclasses import replace

from tpmm_jax.config import RewardConfig

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "rewards"))
import films


def get_config() -> RewardConfig:
    """Returns the configuration."""
    config = films.get_config()
    return replace(config, evaluation=replace(config.evaluation, every=40, sets={}))
