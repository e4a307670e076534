"""From rewards to preference pairs: best against worst, held-out prompts apart."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.special

from tpmm_jax.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class PairingConfig:
    """How rewards become pairs.

    Attributes:
      holdout_fraction: share of the prompts, fixed for the run, that train nothing;
        all ordered pairs of their samples score the merged reference.
      flip_probability: label noise, for studies: the chance that a pair's labels
        are swapped, held-out pairs included.
      labels: "reward": the higher reward is chosen. "bt": each of a pair's answers may
        be, by Bradley and Terry's chance sigma(r_1 - r_2), held-out pairs included; a
        label against the rewards counts as flipped.
      margins: what becomes of training pairs whose margin, of madpo.margins, is
        negative: "keep", "drop" or "relabel" (chosen and rejected change places).
      weights: of training pairs in the loss: "equal", or by "agreement", how many of
        the earlier policies prefer the chosen answer too (after CREAM).
    """

    holdout_fraction: float = 0.25
    flip_probability: float = 0.0
    labels: Literal["reward", "bt"] = "reward"
    margins: Literal["keep", "drop", "relabel"] = "keep"
    weights: Literal["equal", "agreement"] = "equal"

    def validate(self) -> None:
        """Raises BadInput for a value out of range."""
        if not 0 <= self.holdout_fraction < 1:
            raise BadInput(
                f"pairing.holdout_fraction is {self.holdout_fraction}; use 0 to below 1"
            )
        if not 0 <= self.flip_probability <= 1:
            raise BadInput(
                f"pairing.flip_probability is {self.flip_probability}; use 0 to 1"
            )


@dataclass(frozen=True)
class PairPlaces:
    """One pair: its places in an iteration's rollouts, and how it was labelled."""

    prompt: int
    chosen: int
    rejected: int
    flipped: bool
    held_out: bool


def make_pairs(
    rewards_BR: np.ndarray,
    held_out_B: Sequence[bool],
    flip_probability: float,
    *,
    seed: list[int],
    labels: str = "reward",
) -> tuple[list[PairPlaces], int]:
    """Returns pairs, and how many prompts gave none because all rewards tie.

    A training prompt gives its best against its worst response; a held-out one
    all pairs of responses with different rewards. Among equal best (or worst) the
    first counts.

    >>> rewards_BR = np.array([[0.1, 0.9], [0.5, 0.5]])
    >>> pairs, tied = make_pairs(rewards_BR, [False, False], 0.0, seed=[0])
    >>> [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs], tied
    ([(0, 1, 0)], 1)

    Args:
      rewards_BR: finite rewards.
      held_out_B: which prompts are held out.
      flip_probability: the chance that a pair's labels are swapped.
      seed: of the label flips.
      labels: "reward" or "bt", see PairingConfig.
    """
    pairs: list[PairPlaces] = []
    tied = 0
    for b, held_out in enumerate(held_out_B):
        r = rewards_BR[b]
        if held_out:
            found = [
                (i, j) if r[i] > r[j] else (j, i)
                for i, j in itertools.combinations(range(len(r)), 2)
                if r[i] != r[j]
            ]
        else:
            best, worst = int(np.argmax(r)), int(np.argmin(r))
            found = [(best, worst)] if r[best] > r[worst] else []
        tied += not found
        # A prompt's flips depend on its own number, not on the other prompts.
        flips = np.random.default_rng([*seed, 1, b]).random(len(found))
        flipped_P = flips < flip_probability
        if labels == "bt":
            drawn = np.random.default_rng([*seed, 2, b]).random(len(found))
            lead = np.asarray([r[i] - r[j] for i, j in found])
            flipped_P ^= drawn < scipy.special.expit(-lead)
        for (chosen, rejected), flipped in zip(found, flipped_P.tolist()):
            if flipped:
                chosen, rejected = rejected, chosen
            pairs.append(PairPlaces(b, chosen, rejected, flipped, bool(held_out)))
    return pairs, tied
