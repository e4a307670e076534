"""Fusion weights on the exact held-out loss, from those that margins gave.

theta_0's weight w_0 is fixed; the others' logits a_GK and the log of D's scale go down

    mean[-log sigma(s D_theta(w))] + RIDGE / 2 mean_G |a_g - start|^2

by optax's L-BFGS and a line search on the host: a step is one merge from disk and one
pass through the network, and there are few. Every evaluation is kept, so that a search
that was stopped runs through those it had and goes on.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from tpmm_jax.merging.config import MAX_EVALUATIONS
from tpmm_jax.merging.deltas import Deltas
from tpmm_jax.merging.learned import HeldOut, OnStep, gradient_fn, softmax

# Ties the layers to the weights that all share; not tuned.
RIDGE = 0.01
# Logits of weights that margins gave no share start here, and not at -infinity.
LEAST_SHARE = 1e-3
# A step must lower the loss by this part of what its slope promises (Armijo); a search
# whose step lowers it by less than the second number is done.
SUFFICIENT, LEAST_GAIN = 1e-4, 1e-6


class Problem:
    """The loss and its gradient over x = (logits of all groups, log of the scale).

    Args:
      kept: checkpoints that have weights, without theta_0.
      share_K: their weights that the search starts from.
      anchor: theta_0's weight.
      scale: of D, where it is free, at the start.
    """

    def __init__(
        self,
        deltas: Deltas,
        held_out: HeldOut,
        kept: Sequence[int],
        share_K: np.ndarray,
        anchor: float,
        scale: float,
    ) -> None:
        self.deltas, self.held_out, self.anchor = deltas, held_out, anchor
        self.kept, self.scale = list(kept), scale
        share_K = np.maximum(share_K, LEAST_SHARE)
        self.start_GK = np.tile(np.log(share_K / share_K.sum()), (len(deltas.names), 1))

    def weights(self, x: np.ndarray) -> np.ndarray:
        """Returns the weights of all checkpoints, [G, K]."""
        weights_GK = np.zeros((len(self.start_GK), self.deltas.count))
        share_GK = softmax(x[:-1].reshape(self.start_GK.shape))
        weights_GK[:, 0] = self.anchor
        weights_GK[:, self.kept] = (1 - self.anchor) * share_GK
        return weights_GK

    def start(self) -> np.ndarray:
        """Returns the x at which the search begins."""
        config = self.held_out.config
        scale = config.beta if config.objective == "fixed" else self.scale
        return np.append(self.start_GK.ravel(), np.log(scale))

    def evaluate(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the loss and its gradient."""
        held_out, config = self.held_out, self.held_out.config
        # With room, for what is pooled grows and a number of passes is compiled.
        accumulation = 2 ** (-(-held_out.size // held_out.micro) - 1).bit_length()
        run = gradient_fn(held_out.decoder, config.length_normalized, accumulation)
        rows = held_out.rows(np.arange(held_out.size), accumulation * held_out.micro)
        theta = self.deltas.merge(self.weights(x))
        gradient, d_scale, loss = run(theta, jnp.float32(x[-1]), rows)
        del theta
        d_weight_GK = self.deltas.weight_gradient(gradient)
        d_share_GK = (1 - self.anchor) * d_weight_GK[:, self.kept]
        logits_GK = x[:-1].reshape(self.start_GK.shape)
        share_GK = softmax(logits_GK)
        inner_G1 = np.sum(share_GK * d_share_GK, axis=1, keepdims=True)
        apart_GK = logits_GK - self.start_GK
        groups = len(apart_GK)
        d_logits_GK = share_GK * (d_share_GK - inner_G1) + RIDGE * apart_GK / groups
        free = config.objective == "calibrated"
        value = float(loss) + RIDGE / 2 * float(np.sum(apart_GK**2)) / groups
        return value, np.append(d_logits_GK.ravel(), float(d_scale) if free else 0.0)


def fit_exact(
    problem: Problem, *, progress: dict[str, Any] | None, on_step: OnStep
) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns weights [G, K] and what is recorded of the search.

    Args:
      progress: what on_step was last given, to continue from there.
      on_step: called after each evaluation with (progress, metrics); progress is JSON.
    """
    start = np.asarray(progress["start"]) if progress else problem.start()
    known = list(progress["evaluations"]) if progress else []
    done = 0

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal done
        if done == len(known):
            value, gradient = problem.evaluate(x)
            known.append([value, gradient.tolist()])
            kept = {"step": len(known), "start": start.tolist(), "evaluations": known}
            on_step(kept, {"loss": value, "scale": float(np.exp(x[-1]))})
        value, gradient = known[done]
        done += 1
        return value, np.asarray(gradient)

    x = start
    value, gradient = first, _ = evaluate(x)
    lbfgs = optax.scale_by_lbfgs()
    state = lbfgs.init(jnp.asarray(x))
    while done < MAX_EVALUATIONS:
        ahead, state = lbfgs.update(jnp.asarray(gradient), state, jnp.asarray(x))
        step = -np.asarray(ahead, np.float64)
        if (slope := float(step @ gradient)) >= 0:
            break
        before, size = value, 1.0
        while done < MAX_EVALUATIONS:
            tried, d_tried = evaluate(x + size * step)
            if tried <= value + SUFFICIENT * size * slope:
                x, value, gradient = x + size * step, tried, d_tried
                break
            size /= 2
        # The first step is no longer than the gradient, and may gain little.
        if before - value < LEAST_GAIN and done > 2:
            break
    report = {
        "scale": float(np.exp(x[-1])),
        "start_loss": first,
        "exact_loss": value,
        "evaluations": done,
    }
    return problem.weights(x), report
