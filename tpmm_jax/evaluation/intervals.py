"""95 % intervals of means and of win rates, clustered by prompt.

Samples of one prompt are alike, so a prompt counts as one observation: its mean.
Methods were chosen by measured coverage (tests/evaluation/test_coverage.py): the
studentised bootstrap for means, as Student's and BCa miss too often on skewed
rewards; Wilson's score interval with an effective number of prompts for win rates,
where the studentised bootstrap covers up to 99 % near the ends of [0, 1], and Clopper
and Pearson's where wins or losses are few, as Wilson's covers down to 92 % there.
"""

import functools
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float

LEVEL = 0.95
RESAMPLES = 4_999
# Above this number of prompts Student's interval serves as well, and at once.
MOST_RESAMPLED = 1_024
# Wins or losses, in effective trials, below which the exact interval is used.
FEW = 5.0
_SEED = 20_240


class Interval(NamedTuple):
    """An estimate and its 95 % interval; bounds are infinite where nothing is known."""

    mean: float
    low: float
    high: float

    @property
    def excludes_0(self) -> bool:
        """Whether the sign of what is estimated is known."""
        return self.low > 0 or self.high < 0


def mean_interval(values_BR: Float[np.ndarray, "B R"]) -> Interval:
    """Returns the mean with its studentised bootstrap interval over prompts.

    Resamples are seeded: the same data give the same interval. One prompt, or prompts
    whose means are all equal, show no spread and hence bound nothing: the interval is
    (-inf, inf). If more than 2.5 % of the resamples have no spread (at most about
    three prompts differ from all others), the side they leave open is infinite.

    Args:
      values_BR: finite numbers, R samples of each of B prompts.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), 12.5.
    """
    mean_B = values_BR.mean(axis=1)
    B, mean = len(mean_B), float(mean_B.mean())
    spread = float(mean_B.std(ddof=1)) if B > 1 else 0.0
    if spread <= 1e-12 * float(np.abs(mean_B).max()):
        return Interval(mean, -math.inf, math.inf)
    low_t, high_t = _student(B) if B > MOST_RESAMPLED else _resampled(mean_B - mean)
    error = spread / math.sqrt(B)
    return Interval(mean, mean - high_t * error, mean - low_t * error)


def paired_interval(
    ours_BR: Float[np.ndarray, "B R"], theirs_BR: Float[np.ndarray, "B _"]
) -> Interval:
    """Returns the mean of ours minus theirs with its interval, paired by prompt."""
    return mean_interval((ours_BR.mean(axis=1) - theirs_BR.mean(axis=1))[:, None])


def joint_intervals(values_BS: Float[np.ndarray, "B S"]) -> list[Interval]:
    """Returns intervals of S means that hold their means all at once.

    That is what a difference needs which was picked as the largest of many. The
    quantiles are those of the largest, and of the smallest, studentised mean of each
    resample. A column whose prompts are all equal has (-inf, inf), as in
    ``mean_interval``, and takes no part.

    Args:
      values_BS: S numbers of each of B prompts.

    Source: Romano and Wolf (2005), their studentised maximum.
    """
    B, mean_S = len(values_BS), values_BS.mean(axis=0)
    if B > 1:
        spread_S = values_BS.std(axis=0, ddof=1)
        known_S = spread_S > 1e-12 * np.abs(values_BS).max(axis=0)
    else:
        known_S = np.zeros(len(mean_S), bool)
    found = [Interval(float(mean), -math.inf, math.inf) for mean in mean_S]
    if known_S.any():
        error_S = spread_S[known_S] / math.sqrt(B)
        t_JS = _joint_t(values_BS[:, known_S] - mean_S[known_S])
        low_t, high_t = _tails(t_JS.min(axis=1))[0], _tails(t_JS.max(axis=1))[1]
        for s, error in zip(np.flatnonzero(known_S), error_S):
            low, high = mean_S[s] - high_t * error, mean_S[s] - low_t * error
            found[s] = Interval(float(mean_S[s]), float(low), float(high))
    return found


def resampled_means(values_BS: Float[np.ndarray, "B S"]) -> Float[np.ndarray, "J S"]:
    """Returns the means of S numbers over J seeded resamples of the prompts."""
    B, mean_S = len(values_BS), values_BS.mean(axis=0)
    if B > MOST_RESAMPLED:
        return mean_S + _normal_means(values_BS)
    return np.einsum("JB,BS->JS", _counts(B), values_BS) / B


def _joint_t(centred_BS: np.ndarray) -> np.ndarray:
    """Returns (mean - true mean) / error of S means over resamples of prompts."""
    B = len(centred_BS)
    if B > MOST_RESAMPLED:
        error_S = centred_BS.std(axis=0, ddof=1) / math.sqrt(B)
        return _normal_means(centred_BS) / error_S
    return np.stack([_resampled_t(centred_B) for centred_B in centred_BS.T], axis=1)


def _normal_means(values_BS: np.ndarray) -> np.ndarray:
    """Returns how means of many prompts err, drawn J times, [J, S]."""
    B, S = values_BS.shape
    covariance_SS = np.atleast_2d(np.cov(values_BS, rowvar=False)) / B
    rng = np.random.default_rng([_SEED, B])
    return rng.multivariate_normal(np.zeros(S), covariance_SS, RESAMPLES)


def rate_interval(values: Sequence[np.ndarray] | np.ndarray) -> Interval:
    """Returns the share of wins with its interval over prompts, inside [0, 1].

    Wilson's score interval, its number of trials such that p (1 - p) / trials is the
    variance seen over prompts, its quantile Student's; with fewer than FEW wins or
    losses Clopper and Pearson's of as many trials. Where all values are equal no
    variance is seen: a prompt with another value then has at most the probability
    that Clopper and Pearson's interval gives to none in B.

    Args:
      values: for each prompt its outcomes in [0, 1], as many as there are (0 loss,
        0.5 tie, 1 win); the rate is their mean over all prompts.

    Source: Wilson (1927); Korn and Graubard (1998) for the effective number.
    """
    sum_B = np.asarray([np.sum(row) for row in values], np.float64)
    size_B = np.asarray([len(row) for row in values], np.float64)
    B, rate = len(sum_B), float(sum_B.sum() / size_B.sum())
    if B < 2:
        return Interval(rate, 0.0, 1.0)
    # Of a ratio of sums, by its linearisation; equal sizes give the usual variance.
    rest_B = sum_B - rate * size_B
    variance = float(B / (B - 1) * np.sum(rest_B**2)) / float(size_B.sum()) ** 2
    if variance <= 1e-24:
        other = 1 - ((1 - LEVEL) / 2) ** (1 / B)
        return Interval(rate, rate * (1 - other), rate + (1 - rate) * other)
    trials = rate * (1 - rate) / variance
    few = trials * min(rate, 1 - rate) < FEW
    low, high = _exact(rate, trials) if few else _wilson(rate, trials, B)
    return Interval(rate, max(0.0, low), min(1.0, high))


def _wilson(rate: float, trials: float, B: int) -> tuple[float, float]:
    z = _student(B)[1]
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    spread = math.sqrt(rate * (1 - rate) / trials + (z / (2 * trials)) ** 2)
    half = z / (1 + z**2 / trials) * spread
    return centre - half, centre + half


def accuracy_interval(
    margin_P: Float[np.ndarray, " P"], prompts: Sequence[Hashable]
) -> Interval:
    """Returns the share of pairs of positive margin, ties half, with its interval.

    Args:
      margin_P: D of each pair.
      prompts: the prompt of each pair; those of one prompt count together.
    """
    by_prompt: dict[Hashable, list[float]] = {}
    for prompt, right in zip(prompts, (margin_P > 0) + 0.5 * (margin_P == 0)):
        by_prompt.setdefault(prompt, []).append(float(right))
    return rate_interval([np.asarray(some) for some in by_prompt.values()])


def accuracy_gain(
    margin_P: Float[np.ndarray, " P"],
    before_P: Float[np.ndarray, " P"],
    prompts: Sequence[Hashable],
) -> Interval:
    """Returns how much higher one accuracy is than another, paired by pair.

    The interval's unit is the prompt; where the two differ nowhere it is (-inf, inf).

    Args:
      margin_P, before_P: of each pair by the one model and by the other.
      prompts: the prompt of each pair.
    """
    right = [(m > 0) + 0.5 * (m == 0) for m in (margin_P, before_P)]
    sums: dict[Hashable, float] = {}
    for prompt, gain in zip(prompts, right[0] - right[1]):
        sums[prompt] = sums.get(prompt, 0.0) + float(gain)
    # Each prompt's part of the mean over pairs.
    values_B = np.asarray(list(sums.values())) * (len(sums) / len(margin_P))
    return mean_interval(values_B[:, None])


def _exact(rate: float, trials: float) -> tuple[float, float]:
    won, lost, tail = rate * trials, (1 - rate) * trials, (1 - LEVEL) / 2
    low = scipy.stats.beta.ppf(tail, won, lost + 1)
    return float(low), float(scipy.stats.beta.ppf(1 - tail, won + 1, lost))


def _student(B: int) -> tuple[float, float]:
    high = float(scipy.stats.t.ppf((1 + LEVEL) / 2, B - 1))
    return -high, high


def _resampled(centred_B: np.ndarray) -> tuple[float, float]:
    """Returns quantiles of (mean - true mean) / error over resamples of prompts."""
    return _tails(_resampled_t(centred_B))


def _resampled_t(centred_B: np.ndarray) -> np.ndarray:
    B, counts_JB = len(centred_B), _counts(len(centred_B))
    # einsum and not a matrix product: its sums do not depend on threads.
    mean_J = np.einsum("JB,B->J", counts_JB, centred_B) / B
    square_J = np.einsum("JB,B->J", counts_JB, centred_B**2) / B
    error_J = np.sqrt(np.maximum(square_J - mean_J**2, 0) / (B - 1))
    flat_J = error_J <= 1e-9 * math.sqrt(float(np.mean(centred_B**2)))
    return np.divide(mean_J, error_J, out=np.copysign(np.inf, mean_J), where=~flat_J)


def _tails(t_J: np.ndarray) -> tuple[float, float]:
    ordered_J = np.sort(t_J)
    tail = round((1 - LEVEL) / 2 * (RESAMPLES + 1))
    return float(ordered_J[tail - 1]), float(ordered_J[-tail])


@functools.lru_cache(maxsize=4)
def _counts(B: int) -> np.ndarray:
    """How often each prompt is in each resample, [J, B]."""
    rng = np.random.default_rng([_SEED, B])
    return rng.multinomial(B, np.full(B, 1 / B), size=RESAMPLES).astype(np.float64)
