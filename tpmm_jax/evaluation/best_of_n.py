"""Best of n: what the answer that a proxy picks out of n is worth by a gold scorer.

One pool of N answers a prompt serves every n up to N: the mean over all its subsets of
n answers is known in closed form, so nothing is drawn again.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float

from tpmm_jax.errors import BadInput
from tpmm_jax.evaluation.intervals import Interval, joint_intervals, resampled_means


def kl_bound(n: int) -> float:
    """Returns log n - (n - 1) / n, nats: the policy's KL is at most this.

    Best of n is a policy too; its KL to the one that is drawn from is this where no two
    answers are equal, and less where answers repeat.

    >>> kl_bound(1), round(kl_bound(64), 3)
    (0.0, 3.175)

    Source: Beirami et al., 2401.01879, theorem 1.
    """
    return math.log(n) - (n - 1) / n


def curve_sizes(n: int) -> list[int]:
    """Returns the n of a curve: all up to 16, then eight a doubling, the last one n.

    >>> curve_sizes(24)[-4:]
    [19, 21, 23, 24]
    """
    doublings = math.ceil(math.log2(max(n, 16) / 16))
    steps = [round(16 * 2 ** (k / 8)) for k in range(1, 8 * doublings + 1)]
    return [k for k in [*range(1, 17), *steps] if k < n] + [n]


def pick_chances(
    proxy_BN: Float[np.ndarray, "B N"], n: int
) -> Float[np.ndarray, "B N"]:
    """Returns how likely each answer is the best of n from its prompt's pool of N.

    Over all subsets of n answers: C(i - 1, n - 1) / C(N, n) for the i-th by the proxy,
    ascending. Equal answers share what their places have together, so that a tie is
    broken evenly.

    >>> pick_chances(np.array([[3.0, 1.0, 2.0, 2.0]]), 2).tolist()
    [[0.5, 0.0, 0.25, 0.25]]

    Args:
      proxy_BN: finite numbers, N answers to each of B prompts.
      n: from 1 to N.
    """
    N = proxy_BN.shape[1]
    if not 1 <= n <= N:
        raise BadInput(f"n is {n}; wanted 1 to {N}, the answers of a prompt's pool")
    below_K = _share_of_subsets(N, n)
    ordered_BN = np.sort(proxy_BN, axis=1)
    chances = []
    for ordered_N, proxy_N in zip(ordered_BN, proxy_BN):
        low_N = np.searchsorted(ordered_N, proxy_N, "left")
        high_N = np.searchsorted(ordered_N, proxy_N, "right")
        chances.append((below_K[high_N] - below_K[low_N]) / (high_N - low_N))
    return np.stack(chances)


def _share_of_subsets(N: int, n: int) -> np.ndarray:
    """C(k, n) / C(N, n) for k = 0 ... N: the subsets that lie in the lowest k."""
    k = np.arange(n, N + 1)
    logs = scipy.special.gammaln(k + 1) - scipy.special.gammaln(k - n + 1)
    return np.concatenate([np.zeros(n), np.exp(logs - logs[-1])])


def best_of(
    proxy_BN: Float[np.ndarray, "B N"],
    values_BN: Float[np.ndarray, "B N"],
    sizes: Sequence[int],
) -> Float[np.ndarray, "B S"]:
    """Returns each prompt's expected value of the answer that a proxy picks out of n.

    Unbiased for n answers drawn afresh, as long as those of the pool are independent.
    At n near N few subsets are left, which hardly differ: keep N >= 2 n.

    Args:
      proxy_BN: what picks, of N answers to each of B prompts.
      values_BN: what the picked answer is worth: the gold score, or the proxy itself.
      sizes: the n, S of them.
    """
    return np.stack(
        [np.sum(pick_chances(proxy_BN, n) * values_BN, axis=1) for n in sizes], axis=1
    )


class Turn(NamedTuple):
    """Where a curve over n is highest, and how it goes on from there.

    Attributes:
      best: the n of the highest mean.
      earliest, latest: where 95 % of the resamples of prompts have it.
      fall: the mean at the last n minus that at ``best``. Its interval holds for every
        n at once, since the best one was chosen by the same data.
      rise: the mean at the last n minus that at about half of it.
      half: that half.
    """

    best: int
    earliest: int
    latest: int
    fall: Interval
    rise: Interval
    half: int

    @property
    def down(self) -> bool:
        """Whether the curve turned down for sure."""
        return self.fall.high < 0

    @property
    def up(self) -> bool:
        """Whether it still rises for sure."""
        return not self.down and self.rise.low > 0


def find_turn(values_BS: Float[np.ndarray, "B S"], sizes: Sequence[int]) -> Turn:
    """Returns where a curve turns down.

    Args:
      values_BS: of ``best_of``.
      sizes: two or more, ascending.
    """
    places = resampled_means(values_BS).argmax(axis=1)
    tails = np.quantile(places, [0.025, 0.975], method="closest_observation")
    falls = joint_intervals(values_BS[:, -1:] - values_BS[:, :-1])
    at = int(values_BS.mean(axis=0).argmax())
    half = min(range(len(sizes) - 1), key=lambda s: abs(sizes[s] - sizes[-1] / 2))
    return Turn(
        best=sizes[at],
        earliest=min(sizes[int(tails[0])], sizes[at]),
        latest=max(sizes[int(tails[1])], sizes[at]),
        fall=falls[at] if at < len(falls) else Interval(0.0, 0.0, 0.0),
        rise=falls[half],
        half=sizes[half],
    )
