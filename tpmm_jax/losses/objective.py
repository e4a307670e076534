"""The weighted sum of losses that training minimises, its rewards and its metrics."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tpmm_jax.axes import CHOSEN, REJECTED
from tpmm_jax.losses.inputs import PairLogProbs, PerPair, f_prime
from tpmm_jax.losses.record import keywords
from tpmm_jax.losses.registry import LOSSES


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("constants", "weights"),
    meta_fields=("names", "structure"),
)
@dataclass(frozen=True, kw_only=True)
class Objective:
    """A sum of losses as compiled programs take it, made by LossConfig.objective.

    Attributes:
      names: keys of LOSSES.
      structure: (name, value) of what a program is compiled for: flags, and constants
        that are None or 0.
      constants: {name: number}, arguments of a program: a sweep compiles once.
      weights: of the losses, one each, arguments too; None: 1 each.
    """

    names: tuple[str, ...]
    structure: tuple[tuple[str, Any], ...]
    constants: dict[str, Any]
    weights: tuple[Any, ...] | None = None

    @property
    def terms(self) -> tuple[tuple[str, Any], ...]:
        """The (name, weight) of each loss of the sum."""
        weights = self.weights or (1.0,) * len(self.names)
        return tuple(zip(self.names, weights, strict=True))

    def get(self, name: str) -> Any:
        """Returns a field of LossConfig; None if none of the losses reads it."""
        return self.constants.get(name, dict(self.structure).get(name))

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function of a loss with the constants that it names."""
        return function(*args, **{name: self.get(name) for name in keywords(function)})


def pair_losses(logps: PairLogProbs, objective: Objective) -> dict[str, PerPair]:
    """Returns each loss of the sum, of each pair, before weights."""
    if divergence := objective.get("f_divergence_type"):
        alpha = objective.get("f_alpha_divergence_coef")
        f_prime_BN = f_prime(logps.log_ratios_BN(), divergence, alpha)
        logps = logps._replace(f_prime_BN=f_prime_BN)
    return {
        name: objective.call(LOSSES[name].function, logps) for name in objective.names
    }


def pair_loss(logps: PairLogProbs, objective: Objective) -> PerPair:
    """Returns the weighted sum of the losses, of each pair.

    >>> from tpmm_jax.losses import LossConfig
    >>> config = LossConfig(name=["dpo", "sft"], weights=[1.0, 0.5], beta=0.5)
    >>> f"{pair_loss(example_pair(), config.objective())[0]:.3f}"
    '1.451'
    """
    losses = pair_losses(logps, objective)
    loss_B = sum(weight * losses[name] for name, weight in objective.terms)
    return loss_B * pair_weights(logps)


def pair_weights(logps: PairLogProbs) -> PerPair:
    """Returns what each pair's loss is multiplied with: WPO's weight, or 1."""
    if logps.wpo_BN is None:
        return jnp.ones(logps.policy_BN.shape[0], logps.policy_BN.dtype)
    return jax.lax.stop_gradient(jnp.exp(jnp.sum(logps.wpo_BN, axis=1)))


def loss_at_zero(objective: Objective) -> float | None:
    """Returns the mean loss at policy = reference in closed form, WPO's weights apart.

    Terms that do not look at the reference are left out; None if there is no other.

    >>> from tpmm_jax.losses import LossConfig
    >>> loss_at_zero(LossConfig(name=["ipo", "sft"], beta=0.5).objective())
    1.0
    """
    values = {**dict(objective.structure), **objective.constants}
    found = [
        weight * (zero(values) if callable(zero) else zero)
        for name, weight in objective.terms
        if (zero := LOSSES[name].at_zero) is not None
    ]
    return sum(found) if found else None


def keep_reference_terms(objective: Objective) -> Objective:
    """Returns the sum without the terms that do not look at the reference."""
    kept = {
        name: weight
        for name, weight in objective.terms
        if LOSSES[name].at_zero is not None
    }
    return replace(objective, names=tuple(kept), weights=tuple(kept.values()))


def rewards_BN(logps: PairLogProbs, objective: Objective) -> Float[Array, "B N"]:
    """Returns the implicit rewards that are logged, as TRL's trainers do.

    beta times the log-ratio; of losses without a reference, beta times what the first
    of them that names its rewards compares, or the log-prob.
    """
    found = [LOSSES[name].rewards for name in objective.names]
    rewards = next((function for function in found if function is not None), None)
    if logps.reference_BN is not None or rewards is None:
        return objective.get("beta") * logps.log_ratios_BN()
    return objective.get("beta") * objective.call(rewards, logps)


def pair_metrics(logps: PairLogProbs, objective: Objective) -> dict[str, PerPair]:
    """Returns TRL's metrics, one value per pair [B].

    >>> from tpmm_jax.losses import LossConfig
    >>> metrics = pair_metrics(example_pair(), LossConfig(beta=0.5).objective())
    >>> metrics["rewards/margins"]
    Array([1.5], dtype=float32)
    """
    logps = jax.tree.map(jax.lax.stop_gradient, logps)
    rewards = rewards_BN(logps, objective)
    chosen, rejected = rewards[:, CHOSEN], rewards[:, REJECTED]
    found = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
        "rewards/margins": chosen - rejected,
        "logps/chosen": logps.policy_BN[:, CHOSEN],
        "logps/rejected": logps.policy_BN[:, REJECTED],
    }
    if len(objective.names) > 1:
        # Before the weight, as a run of that loss alone would log it.
        weights_B = pair_weights(logps)
        for name, loss_B in pair_losses(logps, objective).items():
            found[f"loss/{name}"] = loss_B * weights_B
    for name in objective.names:
        if (metrics := LOSSES[name].metrics) is not None:
            found |= objective.call(metrics, logps)
    return found
