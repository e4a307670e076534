"""How well rewards order pairs: accuracy, choices, calibration, length."""

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
from jaxtyping import Bool, Float, Int

from tpmm_jax.axes import CHOSEN, REJECTED
from tpmm_jax.evaluation.intervals import Interval, accuracy_interval, rate_interval

# Bins of a reliability curve; fewer where there are few pairs.
BINS = 10
_FEWEST_IN_BIN = 20
# Inverse temperatures that are looked for.
_STEEPEST = 1e3


class Bin(NamedTuple):
    """Pairs of like confidence: mean confidence, share that is right, how many."""

    confidence: float
    accuracy: float
    pairs: int


def log_loss(margin_P: Float[np.ndarray, " P"]) -> float:
    """Returns -mean log sigma(r_w - r_l), nats; log 2 is chance.

    >>> round(log_loss(np.zeros(3)), 4)
    0.6931
    """
    return float(np.mean(np.logaddexp(0.0, -margin_P)))


def brier_score(margin_P: Float[np.ndarray, " P"]) -> float:
    """Returns mean (1 - sigma(r_w - r_l))^2; 0.25 is chance.

    >>> brier_score(np.zeros(3))
    0.25
    """
    return float(np.mean(scipy.special.expit(-margin_P) ** 2))


def reliability(margin_P: Float[np.ndarray, " P"], bins: int = BINS) -> list[Bin]:
    """Returns the reliability curve of a reward model's preferences.

    A pair's confidence is sigma(|r_w - r_l|), from 1/2 to 1; it is right where the
    chosen answer has the higher reward, half right in a tie. Bins hold equally many
    pairs, at least 20 where there are two bins or more.

    Source: Guo et al. (1706.04599); equal numbers: Nguyen and O'Connor (1508.05154).
    """
    order = np.argsort(np.abs(margin_P), kind="stable")
    count = max(1, min(bins, len(margin_P) // _FEWEST_IN_BIN))
    right_P = (margin_P > 0) + 0.5 * (margin_P == 0)
    confidence_P = scipy.special.expit(np.abs(margin_P))
    return [
        Bin(float(confidence_P[some].mean()), float(right_P[some].mean()), len(some))
        for some in np.array_split(order, count)
    ]


def calibration_error(curve: Sequence[Bin]) -> float:
    """Returns the expected calibration error: the bins' mean |accuracy - confidence|.

    >>> round(calibration_error([Bin(0.6, 0.5, 10), Bin(0.9, 0.9, 30)]), 3)
    0.025
    """
    pairs = sum(one.pairs for one in curve)
    return sum(abs(one.accuracy - one.confidence) * one.pairs for one in curve) / pairs


def fit_temperature(margin_P: Float[np.ndarray, " P"]) -> float | None:
    """Returns T > 0 such that sigma(margin / T) is calibrated; None if there is none.

    Minimises the log loss over 1 / T, with Platt's target (P + 1) / (P + 2) in place of
    1, so that pairs that are all right give a finite scale. Where no T > 0 lowers the
    loss below chance, the rewards do not order the pairs.

    Source: Guo et al. (1706.04599) section 4.2; Platt (1999) section 2.2.
    """
    target = (len(margin_P) + 1) / (len(margin_P) + 2)

    def slope(inverse: float) -> float:
        right_P = scipy.special.expit(inverse * margin_P)
        return float(np.mean((right_P - target) * margin_P))

    if slope(0.0) >= 0:
        return None
    if slope(_STEEPEST) < 0:
        return 1 / _STEEPEST
    return 1 / scipy.optimize.brentq(slope, 0.0, _STEEPEST, xtol=1e-9)


def choice_share(chosen: float, rejected: Sequence[float], size: int) -> float:
    """Returns how often the chosen answer is the best of ``size``.

    The mean over all choices of size - 1 of the rejected answers; a tie of k answers
    for the best counts 1 / k.

    >>> round(choice_share(1.0, [0.0, 0.0, 0.0, 2.0], 4), 3)
    0.25
    """
    below = sum(one < chosen for one in rejected)
    equal = sum(one == chosen for one in rejected)
    drawn = size - 1
    won = sum(
        math.comb(equal, ties) * math.comb(below, drawn - ties) / (1 + ties)
        for ties in range(min(equal, drawn) + 1)
    )
    return won / math.comb(len(rejected), drawn)


def choice_accuracy(
    rewards_PN: Float[np.ndarray, "P N"],
    prompts: Sequence[Hashable],
    chosen: Sequence[Hashable],
    rejected: Sequence[Hashable],
    size: int = 4,
) -> tuple[Interval, int] | None:
    """Returns the share of right choices of one from ``size``, and their count.

    Pairs of one prompt and one chosen answer, with at least size - 1 different rejected
    ones, are one choice; chance is 1 / size. None without such pairs.

    Source: RewardBench 2 (2506.01937).

    Args:
      prompts, chosen, rejected: what each pair is made of; the interval's unit is the
        prompt.
    """
    groups: dict[tuple[Hashable, Hashable], dict[Hashable, int]] = {}
    for place, (prompt, one, other) in enumerate(zip(prompts, chosen, rejected)):
        groups.setdefault((prompt, one), {}).setdefault(other, place)
    shares: dict[Hashable, list[float]] = {}
    for (prompt, _), others in groups.items():
        places = list(others.values())
        if len(places) < size - 1:
            continue
        reward = float(rewards_PN[places[0], CHOSEN])
        against = [float(x) for x in rewards_PN[places, REJECTED]]
        shares.setdefault(prompt, []).append(choice_share(reward, against, size))
    if not shares:
        return None
    count = sum(map(len, shares.values()))
    return rate_interval([np.asarray(some) for some in shares.values()]), count


def correlations(
    x_M: Float[np.ndarray, " M"], y_M: Float[np.ndarray, " M"]
) -> tuple[float, float]:
    """Returns Pearson's and Spearman's correlation; nan where one is constant.

    >>> correlations(np.array([1.0, 2, 3]), np.array([1.0, 2, 30]))[1]
    1.0
    """
    if min(len(set(x_M.tolist())), len(set(y_M.tolist()))) < 2:
        return math.nan, math.nan
    ranks = [scipy.stats.rankdata(values) for values in (x_M, y_M)]
    return _pearson(x_M, y_M), _pearson(*ranks)


def _pearson(x_M: np.ndarray, y_M: np.ndarray) -> float:
    a, b = x_M - x_M.mean(), y_M - y_M.mean()
    return float(np.clip((a * b).sum() / math.sqrt((a**2).sum() * (b**2).sum()), -1, 1))


def measure_pairs(
    rewards_PN: Float[np.ndarray, "P N"],
    lengths_PN: Int[np.ndarray, "P N"],
    prompts: Sequence[Hashable],
) -> dict[str, Any]:
    """Returns the measures of a set of pairs by name; see docs/rewards.md.

    Args:
      rewards_PN: finite, of chosen and rejected.
      lengths_PN: tokens of the two answers.
      prompts: the prompt of each pair: the intervals' unit.
    """
    margin_P = rewards_PN[:, CHOSEN] - rewards_PN[:, REJECTED]
    accuracy = accuracy_interval(margin_P, prompts)
    longer_P = lengths_PN[:, CHOSEN] - lengths_PN[:, REJECTED]
    pearson, spearman = correlations(
        rewards_PN.ravel().astype(np.float64), lengths_PN.ravel().astype(np.float64)
    )
    found: dict[str, Any] = {
        "pairs": len(margin_P),
        "prompts": len(set(prompts)),
        "loss": log_loss(margin_P),
        "brier": brier_score(margin_P),
        "accuracy": accuracy.mean,
        "accuracy/low": accuracy.low,
        "accuracy/high": accuracy.high,
        "ties": float(np.mean(margin_P == 0)),
        "margin": float(margin_P.mean()),
        "mean_reward": float(rewards_PN.mean()),
        "reward_std": float(rewards_PN.std()),
        "ece": calibration_error(reliability(margin_P)),
        "length/longer_wins": _share(longer_P),
    }
    if math.isfinite(pearson):
        found |= {"length/pearson": pearson, "length/spearman": spearman}
    sides = {"longer": longer_P > 0, "shorter": longer_P < 0, "equal": longer_P == 0}
    for name, where in sides.items():
        found[f"length/chosen_{name}/pairs"] = int(where.sum())
        if where.any():
            found[f"length/chosen_{name}/accuracy"] = _share(margin_P, where)
    return found


def _share(values_P: np.ndarray, where: Bool[np.ndarray, " P"] | bool = True) -> float:
    """The share above 0, ties half."""
    right_P = (values_P > 0) + 0.5 * (values_P == 0)
    return float(np.mean(right_P, where=where))
