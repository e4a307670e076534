"""Weights of a shipped mean, fitted on rated samples (our reconstruction).

A merge answers to first order as the mixture log p_w = sum_k w_k log p_k does. Of
prompts that train nothing, the samples y_r of an earlier policy q, with rewards R_r,
say how good that would be (samples weighted by importance, within their prompt):

    F(w) = mean over prompts of sum_r softmax_r(log p_w(y_r) - log q(y_r)) R_r

Unlike preferences, this identifies theta_0's weight. The weights are used only where,
out of fold, they earn more than the plain mean by more than one standard error.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.merging.lbfgs import minimise
from tpmm_jax.merging.margins import LEAST_PROMPTS, clustered, cpu, folds, room

# Stops where no weight's gradient is above the first, of F over its deviation; or after
# so many steps.
TOLERANCE, MAX_STEPS = 1e-6, 200
# Prompts and policies that a compiled solver has room for.
LEAST_ROOM = 128, 8


@dataclass(frozen=True)
class RatedSamples:
    """Samples of held-out prompts: P prompts of at most R samples, K policies.

    Attributes:
      logp_PRK: log-probs of each sample under each policy, nats, float64.
      sampler_PR: under the policy that drew it.
      reward_PR: NaN where a prompt has fewer samples.
      prompts: the unit of folds and of standard errors.
    """

    logp_PRK: np.ndarray
    sampler_PR: np.ndarray
    reward_PR: np.ndarray
    prompts: Sequence[Hashable]


@dataclass(frozen=True)
class ListwiseFit:
    """Weights of theta_0 to theta_{K-1}, and how far to believe them.

    Attributes:
      weights_K: sum 1.
      learned: False: the samples did not show a better mean than the plain one.
      gain, gain_error: F of the fit less that of equal weights, out of fold, in units
        of the reward, and its standard error over prompts.
      prompts: different ones; with fewer than 30 nothing is learned.
    """

    weights_K: np.ndarray
    learned: bool
    gain: float
    gain_error: float
    prompts: int

    def record(self) -> dict[str, Any]:
        """Returns what ship.json keeps of it."""
        return {
            "weights": self.weights_K.tolist(),
            "learned": self.learned,
            "gain": self.gain,
            "gain_error": self.gain_error,
            "held_out_prompts": self.prompts,
        }


def fit_listwise(samples: RatedSamples) -> ListwiseFit:
    """Returns the weights of the policies."""
    count, K = len(dict.fromkeys(samples.prompts)), samples.logp_PRK.shape[-1]
    equal_K, gain, error = np.full(K, 1 / K), 0.0, 0.0
    weights_K = equal_K
    if count >= LEAST_PROMPTS and np.nanstd(samples.reward_PR) > 0:
        places = {prompt: g for g, prompt in enumerate(dict.fromkeys(samples.prompts))}
        group_P = np.asarray([places[prompt] for prompt in samples.prompts])
        fold_P = folds(group_P)
        used_FP = [fold_P != f for f in range(int(fold_P.max()) + 1)]
        found_FK = _solve_all(samples, np.stack([*used_FP, fold_P >= 0]))
        gain_P = expected_rewards(samples, found_FK[fold_P])
        gain_P -= expected_rewards(samples, equal_K)
        gain, error = clustered(gain_P, group_P)
        weights_K = found_FK[-1]
    learned = gain > error
    return ListwiseFit(
        weights_K if learned else equal_K, bool(learned), gain, error, count
    )


def expected_rewards(samples: RatedSamples, weights_K: np.ndarray) -> np.ndarray:
    """Returns each prompt's reward under the mixture, float64 [P].

    Args:
      weights_K: of all prompts, or of each, [P, K].
    """
    weights_P1K = np.atleast_2d(weights_K)[:, None, :]
    lead_PR = (samples.logp_PRK * weights_P1K).sum(axis=-1) - samples.sampler_PR
    known_PR = np.isfinite(samples.reward_PR)
    lead_PR = np.where(known_PR, lead_PR, -np.inf)
    share_PR = np.exp(lead_PR - lead_PR.max(axis=1, keepdims=True))
    share_PR /= share_PR.sum(axis=1, keepdims=True)
    return (share_PR * np.where(known_PR, samples.reward_PR, 0)).sum(axis=1)


def _solve_all(samples: RatedSamples, used_FP: np.ndarray) -> np.ndarray:
    """Returns the weights fitted on each row's prompts, float64 [F, K]."""
    known_PR = np.isfinite(samples.reward_PR)
    # In units of its deviation, so that the tolerance means the same for any reward.
    reward_PR = np.where(known_PR, samples.reward_PR, 0) / np.nanstd(samples.reward_PR)
    offset_PR = np.where(known_PR, -samples.sampler_PR, -np.inf)
    P, _, K = samples.logp_PRK.shape
    more_P, more_K = (room(n, least) - n for n, least in zip((P, K), LEAST_ROOM))
    part_FP = used_FP / used_FP.sum(axis=1, keepdims=True)
    with jax.enable_x64(True), jax.default_device(cpu()):
        weights_FK = _solve(
            np.pad(samples.logp_PRK, ((0, more_P), (0, 0), (0, more_K))),
            np.pad(offset_PR, ((0, more_P), (0, 0))),
            np.pad(reward_PR, ((0, more_P), (0, 0))),
            np.pad(part_FP, ((0, 0), (0, more_P))),
            np.arange(K + more_K) < K,
        )
        return np.asarray(weights_FK)[:, :K]


@jax.jit
def _solve(
    logp_PRK: jax.Array,
    offset_PR: jax.Array,
    reward_PR: jax.Array,
    part_FP: jax.Array,
    known_K: jax.Array,
) -> jax.Array:
    """Returns the weights, one row for each row of the prompts' parts."""

    def weights_of(logits_K: jax.Array) -> jax.Array:
        return jax.nn.softmax(jnp.where(known_K, logits_K, -jnp.inf))

    def solve_one(part_P: jax.Array) -> jax.Array:
        def loss(logits_K: jax.Array) -> jax.Array:
            lead_PR = logp_PRK @ weights_of(logits_K) + offset_PR
            reward_P = jnp.sum(jax.nn.softmax(lead_PR, axis=1) * reward_PR, axis=1)
            return -jnp.sum(part_P * reward_P)

        def steepest(logits_K: jax.Array) -> jax.Array:
            return jnp.max(jnp.abs(jax.grad(loss)(logits_K)))

        start_K = jnp.zeros(logp_PRK.shape[-1])
        found_K, _ = minimise(
            loss, start_K, steepest, tolerance=TOLERANCE, most=MAX_STEPS
        )
        return weights_of(found_K)

    return jax.lax.map(solve_one, part_FP)
