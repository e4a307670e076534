"""Label noise that no config can state: in a part of the pairs, or in one iteration."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tpmm_jax.loop.rollouts as rollouts
from tpmm_jax.rewards import PairPlaces

# (whether the pair is held out, its iteration, the config's noise) -> its noise
Noise = Callable[[bool, int, float], float]
POISONED = 3

NOISES: dict[str, Noise] = {
    "training_flips": lambda held_out, t, noise: 0.0 if held_out else noise,
    "held_out_flips": lambda held_out, t, noise: noise if held_out else 0.0,
    # Every training label of one iteration is wrong.
    "poisoned": lambda held_out, t, noise: (
        1.0 if t == POISONED and not held_out else noise
    ),
}


@contextlib.contextmanager
def flipped(arm: str) -> Iterator[None]:
    """Labels are flipped as the end of the arm's name says, if it does."""
    noise = next((NOISES[name] for name in NOISES if arm.endswith(name)), None)
    if noise is None:
        yield
        return
    make = rollouts.make_pairs

    def made(
        rewards: Any, held_out: Any, share: float, *, seed: list[int], labels: str
    ) -> tuple[list[PairPlaces], int]:
        tables = {}
        for kind in (False, True):
            tables[kind], tied = make(
                rewards, held_out, noise(kind, seed[1], share), seed=seed, labels=labels
            )
        both = zip(tables[False], tables[True])
        return [b if b.held_out else a for a, b in both], tied

    rollouts.make_pairs = made
    try:
        yield
    finally:
        rollouts.make_pairs = make
