"""Preference losses: one pure function each, of a pair's log-probabilities.

D = (policy chosen - reference chosen) - (policy rejected - reference rejected),
log-probabilities in nats, summed over completion tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tpmm_jax.axes import CHOSEN, REJECTED
from tpmm_jax.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which loss, and its constants.

    Attributes:
      name: a key of LOSSES.
      beta: inverse temperature of the implicit reward.
      label_smoothing: assumed share of flipped labels, of "cdpo" and "robust" only.
      length_normalized: "ipo" only: D of mean token log-probs (current practice)
        or of sums (the paper).
    """

    name: str = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    length_normalized: bool = True

    def validate(self) -> None:
        """Raises BadInput for a value that no loss, or not this one, accepts."""
        if self.name not in LOSSES:
            raise BadInput(
                f"loss.name is {self.name!r}; known losses: {', '.join(LOSSES)}"
            )
        if not 0 < self.beta < float("inf"):
            raise BadInput(f"loss.beta is {self.beta}; it must be positive and finite")
        smooth = self.name in ("cdpo", "robust")
        if smooth and not 0 < self.label_smoothing < 0.5:
            raise BadInput(
                f"loss.label_smoothing is {self.label_smoothing}; {self.name} wants a "
                "value between 0 and 0.5 (0.1 is usual)"
            )
        if not smooth and self.label_smoothing != 0:
            raise BadInput(f"loss.label_smoothing has no meaning for {self.name}")
        if self.name != "ipo" and not self.length_normalized:
            raise BadInput(f"loss.length_normalized has no meaning for {self.name}")


class PairLogProbs(NamedTuple):
    """Log-probabilities of a batch of pairs, nats, float32, and lengths in tokens."""

    policy_BN: jax.Array
    reference_BN: jax.Array
    length_BN: jax.Array

    def log_ratios_BN(self) -> jax.Array:
        """log pi(y) - log pi_ref(y)."""
        return self.policy_BN - self.reference_BN

    def margin_B(self) -> jax.Array:
        """D, nats."""
        ratios_BN = self.log_ratios_BN()
        return ratios_BN[:, CHOSEN] - ratios_BN[:, REJECTED]


PairLoss = Callable[[PairLogProbs, LossConfig], Float[Array, " B"]]


def dpo(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """-log sigma(beta D). Source: 2305.18290 eq. 7."""
    return -jax.nn.log_sigmoid(config.beta * logps.margin_B())


def cdpo(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """-(1 - eps) log sigma(z) - eps log sigma(-z), z = beta D.

    Source: label smoothing of DPO (Mitchell 2023, "A note on DPO with noisy
    preferences").
    """
    z, eps = config.beta * logps.margin_B(), config.label_smoothing
    return -(1 - eps) * jax.nn.log_sigmoid(z) - eps * jax.nn.log_sigmoid(-z)


def robust(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """[-(1 - eps) log sigma(z) + eps log sigma(-z)] / (1 - 2 eps); unbounded below.

    Source: 2403.00409 eq. 12.
    """
    z, eps = config.beta * logps.margin_B(), config.label_smoothing
    loss = -(1 - eps) * jax.nn.log_sigmoid(z) + eps * jax.nn.log_sigmoid(-z)
    return loss / (1 - 2 * eps)


def ipo(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """(D - 1 / (2 beta))^2. Source: 2310.12036 eq. 17."""
    ratios_BN = logps.log_ratios_BN()
    if config.length_normalized:
        ratios_BN = ratios_BN / jnp.maximum(logps.length_BN, 1)
    margin_B = ratios_BN[:, CHOSEN] - ratios_BN[:, REJECTED]
    return (margin_B - 1 / (2 * config.beta)) ** 2


def hinge(logps: PairLogProbs, config: LossConfig) -> Float[Array, " B"]:
    """max(0, 1 - beta D). Source: 2305.10425 (SLiC), as a DPO variant."""
    return jax.nn.relu(1 - config.beta * logps.margin_B())


LOSSES: dict[str, PairLoss] = {
    "dpo": dpo,
    "cdpo": cdpo,
    "robust": robust,
    "ipo": ipo,
    "hinge": hinge,
}


def loss_at_zero(config: LossConfig) -> float:
    """The loss of a pair with D = 0 in closed form, for the self-check."""
    log2 = 0.6931471805599453
    return {
        "dpo": log2,
        "cdpo": log2,
        "robust": log2,
        "ipo": 1 / (4 * config.beta**2),
        "hinge": 1.0,
    }[config.name]


def loss_slope(config: LossConfig) -> float:
    """A bound on |loss(D) - loss(0)| / |D|, less D^2, for the self-check."""
    return 1 / config.beta if config.name == "ipo" else config.beta


def pair_metrics(logps: PairLogProbs, beta: float) -> dict[str, jax.Array]:
    """Returns TRL's metrics, one value a pair [B]."""
    rewards_BN = beta * jax.lax.stop_gradient(logps.log_ratios_BN())
    chosen, rejected = rewards_BN[:, CHOSEN], rewards_BN[:, REJECTED]
    policy_BN = jax.lax.stop_gradient(logps.policy_BN)
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
        "rewards/margins": chosen - rejected,
        "logps/chosen": policy_BN[:, CHOSEN],
        "logps/rejected": policy_BN[:, REJECTED],
    }
