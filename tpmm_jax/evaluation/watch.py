"""The reward-hacking watch: what a rising reward hides, said in words.

A warning is a reason to read samples, not a proof. The earlier policy of a comparison
is the one that an independent measure liked best, and the best of several is best in
part by luck: hence both differences must exclude 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tpmm_jax.evaluation.intervals import Interval, paired_interval

MIN_KL = 1.0
# Where nothing else is asked for: nats per token, and a factor either way.
MAX_KL_PER_TOKEN = 0.5
MAX_LENGTH_RATIO = 1.5


@dataclass(frozen=True)
class Evaluated:
    """What the watch sees of one policy on one set of prompts.

    Attributes:
      name: such as "iteration 3".
      reward_BR: by the scorer that labels; None without one.
      independent: by name, such as "judge careful", what did not label: further
        scores, or a judge's share of wins against theta_0, [B, R]. Higher is better.
      kl: to theta_0, nats per response; None where it is not defined.
      length: mean response, tokens; None where they are another tokenizer's.
    """

    name: str
    reward_BR: np.ndarray | None
    length: float | None = None
    kl: float | None = None
    independent: Mapping[str, np.ndarray] = field(default_factory=dict)


def watch(
    history: Sequence[Evaluated],
    *,
    max_kl_per_token: float,
    max_length_ratio: float,
    look_at: str = "its samples",
    consecutive: bool = True,
) -> list[str]:
    """Returns warnings of the last policy of a history; the first is theta_0.

    Args:
      max_kl_per_token: nats.
      max_length_ratio: the mean length may leave [1 / ratio, ratio] times theta_0's.
      look_at: where the last policy's samples are.
      consecutive: whether the history is that of one run, iteration by iteration, so
        that the length of its steps means something.
    """
    found = _hacking(history, look_at)
    found += _drift(history, max_kl_per_token, look_at, consecutive)
    found += _length(history, max_length_ratio, look_at)
    return found


def _hacking(history: Sequence[Evaluated], look_at: str) -> list[str]:
    *earlier, now = history
    if now.reward_BR is None:
        return []
    found = []
    for name, ours_BR in now.independent.items():
        known = [e for e in earlier if name in e.independent]
        if not known:
            continue
        best = max(known, key=lambda e: float(np.mean(e.independent[name])))
        if best.reward_BR is None:
            continue
        reward = paired_interval(now.reward_BR, best.reward_BR)
        other = paired_interval(ours_BR, best.independent[name])
        if reward.low > 0 and other.high < 0:
            found.append(
                f"reward rose while {name} fell since {best.name}: reward "
                f"{_change(best.reward_BR, now.reward_BR, reward)}, {name} "
                f"{_change(best.independent[name], ours_BR, other)}. The policy may "
                f"exploit the scorer: read {look_at}, lower the learning rate, raise "
                f"beta, or stop at {best.name}"
            )
    return found


def _change(before_BR: np.ndarray, now_BR: np.ndarray, change: Interval) -> str:
    return (
        f"{before_BR.mean():.3g} to {now_BR.mean():.3g} ({change.mean:+.3g}, 95 % "
        f"[{change.low:+.3g}, {change.high:+.3g}])"
    )


def _drift(
    history: Sequence[Evaluated], limit: float, look_at: str, consecutive: bool
) -> list[str]:
    first, before, now = history[0].name, history[-2:][0], history[-1]
    found: list[str] = []
    if now.kl is None or now.length is None or len(history) < 2:
        return found
    a_token = now.kl / max(now.length, 1.0)
    if a_token > limit:
        found.append(
            f"KL to {first} is {a_token:.2f} nats per token ({now.kl:.1f} per "
            f"response), above {limit:g}: the policy is far from where it began. Read "
            f"{look_at} for broken or repeated text; lower the learning rate, raise "
            f"beta, or stop at {before.name}"
        )
    if not consecutive or len(history) < 3 or before.kl is None:
        return found
    # KL grows as the square of a distance (2204.05862 plots rewards over its root): a
    # steady drift quadruples it at t = 2, and that is not an alarm.
    t = len(history) - 1
    step = math.sqrt(max(now.kl, 0)) - math.sqrt(max(before.kl, 0))
    usual = math.sqrt(max(before.kl, 0)) / (t - 1)
    if now.kl > MIN_KL and step > 2 * usual:
        found.append(
            f"KL to {first} jumped in one iteration, from {before.kl:.2f} to "
            f"{now.kl:.2f} nats per response, more than twice the usual step. "
            f"Training may be diverging: read {look_at}; lower the learning rate, "
            f"raise beta, or stop at {before.name}"
        )
    return found


def _length(history: Sequence[Evaluated], ratio: float, look_at: str) -> list[str]:
    first, now = history[0], history[-1]
    if first.length is None or now.length is None or len(history) < 2:
        return []
    unit = max(first.length, 1e-9)
    factors = {e.name: e.length / unit for e in history if e.length is not None}
    inside = [name for name, f in factors.items() if 1 / ratio <= f <= ratio]
    if now.name in inside:
        return []
    factor = factors[now.name]
    return [
        f"responses became {'longer' if factor > 1 else 'shorter'}: {now.length:.1f} "
        f"tokens on average, {first.length:.1f} of {first.name} (a factor of "
        f"{factor:.2f}, outside 1/{ratio:g} to {ratio:g}). The scorer may reward "
        f"length itself: read {look_at}, lower the learning rate, raise beta, or stop "
        f"at {inside[-1] if inside else first.name}"
    ]
