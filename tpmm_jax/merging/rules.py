"""The rules that choose the reference of an iteration: one pure function each.

A rule maps a trajectory theta_0..theta_{K-1} to weights_GK (float64, each group's
sum is 1). A one-hot result is that checkpoint itself, bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tpmm_jax.merging.config import LEARNED_ANCHOR_SHARE, ReferenceConfig
from tpmm_jax.merging.deltas import Deltas
from tpmm_jax.merging.exact import Problem, fit_exact
from tpmm_jax.merging.learned import HeldOut, OnStep, learn, softmax
from tpmm_jax.merging.margins import Margins, fit_weights
from tpmm_jax.merging.scale import objective
from tpmm_jax.merging.trees import one_hot, one_hot_index


@dataclass
class MergeContext:
    """What a rule may look at.

    Attributes:
      names: groups of weights; one unless "learned" works layer by layer.
      margins: of each checkpoint alone on held-out pairs, for rules that read them.
      deltas, held_out: the trajectory, opened when it is asked for, and the pairs, for
        rules that run merged models.
      carried: the last iteration's fusion logits [G, K - 1].
      progress, on_step: of an unfinished ``learn``.
      report: what the rule wants recorded beside the weights.
    """

    config: ReferenceConfig
    count: int
    names: list[str]
    margins: Margins | None = None
    deltas: Callable[[], Deltas] | None = None
    held_out: HeldOut | None = None
    carried: np.ndarray | None = None
    progress: dict[str, Any] | None = None
    on_step: OnStep = lambda progress, row: None
    report: dict[str, Any] = field(default_factory=dict)

    def one_hot(self, k: int) -> np.ndarray:
        """Returns the weights that choose checkpoint k."""
        return one_hot(len(self.names), self.count, k)

    def held_out_loss(self, weights_GK: np.ndarray) -> float:
        """Returns the held-out loss of the merged model."""
        hot = one_hot_index(weights_GK)
        if hot is not None and self.margins is not None:
            return objective(self.margins.of(hot), self.config)
        assert self.deltas is not None and self.held_out is not None
        return self.held_out.loss(self.deltas().merge(weights_GK))


Rule = Callable[[MergeContext], np.ndarray]


def sft(context: MergeContext) -> np.ndarray:
    """theta_0 always.

    >>> sft(MergeContext(ReferenceConfig(), count=3, names=["model"]))
    array([[1., 0., 0.]])
    """
    return context.one_hot(0)


def previous(context: MergeContext) -> np.ndarray:
    """theta_{t-1}: standard iterative DPO.

    >>> previous(MergeContext(ReferenceConfig(), count=3, names=["model"]))
    array([[0., 0., 1.]])
    """
    return context.one_hot(context.count - 1)


def uniform(context: MergeContext) -> np.ndarray:
    """The plain mean of all checkpoints.

    >>> uniform(MergeContext(ReferenceConfig(), count=4, names=["model"]))
    array([[0.25, 0.25, 0.25, 0.25]])
    """
    return np.full((len(context.names), context.count), 1.0 / context.count)


def ema(context: MergeContext) -> np.ndarray:
    """theta_ema <- (1 - mu) theta_ema + mu theta_t, written out as weights.

    >>> ema(MergeContext(ReferenceConfig(ema_mu=0.5), count=3, names=["model"]))
    array([[0.25, 0.25, 0.5 ]])
    """
    mu, k = context.config.ema_mu, np.arange(context.count)
    weights_K = mu * (1 - mu) ** (context.count - 1 - k)
    weights_K[0] = (1 - mu) ** (context.count - 1)
    return np.tile(weights_K, (len(context.names), 1))


def best(context: MergeContext) -> np.ndarray:
    """The single checkpoint with the lowest held-out loss.

    >>> class Known(MergeContext):
    ...     def held_out_loss(self, weights_GK):
    ...         return weights_GK[0] @ [0.7, 0.5, 0.6]
    >>> best(Known(ReferenceConfig(), count=3, names=["model"]))
    array([[0., 1., 0.]])
    """
    losses = [context.held_out_loss(context.one_hot(k)) for k in range(context.count)]
    context.report["held_out_losses"] = losses
    return context.one_hot(int(np.argmin(losses)))


def greedy_soup(context: MergeContext) -> np.ndarray:
    """Best first; an ingredient stays if it lowers the mean's held-out loss.

    >>> class Known(MergeContext):
    ...     def held_out_loss(self, weights_GK):
    ...         return abs(weights_GK[0] @ [0.0, 1.0, 3.0] - 0.4)
    >>> greedy_soup(Known(ReferenceConfig(), count=3, names=["model"]))
    array([[0.5, 0.5, 0. ]])

    Source: Wortsman et al., 2203.05482, recipe 1.
    """
    losses = [context.held_out_loss(context.one_hot(k)) for k in range(context.count)]
    order = np.argsort(losses, kind="stable")
    kept, lowest = [int(order[0])], losses[order[0]]
    for k in order[1:]:
        tried = sum(context.one_hot(j) for j in (*kept, int(k))) / (len(kept) + 1)
        loss = context.held_out_loss(np.asarray(tried))
        if loss < lowest:
            kept, lowest = [*kept, int(k)], loss
    context.report.update(held_out_losses=losses, ingredients=kept)
    return np.asarray(sum(context.one_hot(j) for j in kept) / len(kept))


def learned(context: MergeContext) -> np.ndarray:
    """Weights learned on held-out pairs (our reconstruction).

    From margins, of checkpoints 1 to K - 1 alone: theta_0's is reference.anchor_share.
    Or softmax of fusion logits trained through the network, of all.

    >>> softmax(np.log([[1.0, 3.0]]))
    array([[0.25, 0.75]])
    """
    if context.config.on_margins:
        return _on_margins(context)
    assert context.deltas is not None and context.held_out is not None
    logits_GK, scale = learn(
        context.deltas(),
        context.held_out,
        carried=context.carried,
        progress=context.progress,
        on_step=context.on_step,
    )
    context.report.update(logits=logits_GK.tolist(), scale=scale)
    return softmax(logits_GK)


def _on_margins(context: MergeContext) -> np.ndarray:
    """Weights from margins; under "exact", from there on through the network.

    Where the pairs did not tell the checkpoints apart there is nothing to go on with.
    """
    assert context.margins is not None
    fit = fit_weights(context.margins)
    context.report.update(fit.record())
    weights_K = np.concatenate([[0.0], fit.weights_K])
    if context.config.fit != "exact" or not fit.learned:
        return np.tile(weights_K, (len(context.names), 1))
    assert context.deltas is not None and context.held_out is not None
    anchor = theta_0_weight(context.config)
    assert anchor is not None
    kept = [k for k in range(1, context.count) if k not in fit.left_out]
    share_K = fit.weights_K[[k - 1 for k in kept]]
    # c_k = s w_k, and the weights of these sum to 1 - w_0.
    scale = float(fit.coefficients_K.sum()) / (1 - anchor)
    weights_GK, report = fit_exact(
        Problem(context.deltas(), context.held_out, kept, share_K, anchor, scale),
        progress=context.progress,
        on_step=context.on_step,
    )
    context.report.update(report)
    return weights_GK


RULES: dict[str, Rule] = {
    "sft": sft,
    "previous": previous,
    "uniform": uniform,
    "ema": ema,
    "best": best,
    "greedy_soup": greedy_soup,
    "learned": learned,
    # The iteration starts from theta_{t-1}; the reference moves inside training.
    "trust_region": previous,
}


def choose(context: MergeContext) -> np.ndarray:
    """Returns the weights of the configured rule; of one checkpoint, 1.

    >>> choose(MergeContext(ReferenceConfig(rule="sft"), count=2, names=["model"]))
    array([[1., 0.]])
    """
    if context.count == 1:
        return context.one_hot(0)
    weights_GK = RULES[context.config.rule](context)
    share = theta_0_weight(context.config)
    return weights_GK if share is None else anchored(weights_GK, share)


def theta_0_weight(config: ReferenceConfig) -> float | None:
    """Returns theta_0's weight; None: as the rule has it."""
    if config.anchor_share is None and config.on_margins:
        return LEARNED_ANCHOR_SHARE
    return config.anchor_share


def anchored(weights_GK: np.ndarray, share: float) -> np.ndarray:
    """Returns the weights with theta_0's at ``share``; the others keep their ratios.

    Where all is theta_0's there is nothing to share out.

    >>> anchored(np.array([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]]), 0.5)
    array([[0.5  , 0.125, 0.375],
           [1.   , 0.   , 0.   ]])
    """
    rest_GK = weights_GK[:, 1:]
    total_G1 = rest_GK.sum(axis=1, keepdims=True)
    shared_GK = (1 - share) * rest_GK / np.where(total_G1 > 0, total_G1, 1)
    found_GK = np.concatenate([np.full_like(total_G1, share), shared_GK], axis=1)
    return np.where(total_G1 > 0, found_GK, weights_GK)
