"""Weights of training pairs by what earlier policies make of their labels.

After CREAM (arXiv 2410.12735), which trusts a label as far as the policy of the last
iteration ranks the pair likewise. One weight per pair instead of one for all, and all
earlier policies instead of the last, are our reconstruction.
"""

import numpy as np

from tpmm_jax.loop.held_out import policy_log_probs
from tpmm_jax.loop.rollouts import IterationPairs
from tpmm_jax.loop.run import Disk, Plan
from tpmm_jax.loop.voice import Voice

NAME = "agreement_logps.npz"


def agreement(
    plan: Plan, disk: Disk, voice: Voice, t: int, pairs: IterationPairs
) -> np.ndarray:
    """Returns the share of theta_1 to theta_{t-1} that agree with each label, [P].

    A policy agrees where log p rose more, from theta_0, on the chosen answer than on
    the rejected one; an equal rise is half an agreement. What it needs is computed once
    and kept in the iteration's folder.
    """
    known = policy_log_probs(plan, disk, voice, t, {t: pairs.train}, range(t), NAME)
    leads_KP = [
        (known.logps[k] - known.logps[0]) @ np.array([1.0, -1.0]) for k in range(1, t)
    ]
    return np.mean([0.5 * (1 + np.sign(lead_P)) for lead_P in leads_KP], axis=0)


def pair_weights(share_P: np.ndarray, policies: int) -> np.ndarray:
    """Returns weights of mean 1, float32 [P]; no label is without one.

    As if one more policy agreed with each label and one did not.

    >>> pair_weights(np.array([1.0, 0.5, 0.0]), policies=2)
    array([1.5, 1. , 0.5], dtype=float32)
    """
    weight_P = (1 + policies * share_P) / (2 + policies)
    return (weight_P / weight_P.mean()).astype(np.float32)
