"""How the reference of an iteration is chosen."""

from dataclasses import dataclass, fields
from typing import Literal

from tpmm_jax.errors import BadInput

# The rule of runs whose loss has no reference: nothing is merged or computed.
NO_REFERENCE = "none"
# Constants of one rule.
ONE_RULES = {
    "ema_mu": "ema",
    "trust_region_alpha": "trust_region",
    "trust_region_tau": "trust_region",
}


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """The rule, and the constants of those rules that have some.

    ema_mu and trust_region_* are refused where another rule is chosen. The fields of
    rules that use held-out pairs may be set under any rule and then do nothing, so
    that one config, written for "learned", compares them all by reference.rule alone.

    Attributes:
      rule: a key of RULES, or in a run whose loss has no reference, "none".
      ema_mu: "ema": theta_ema <- (1 - mu) theta_ema + mu theta_t.
      trust_region_alpha, trust_region_tau: "trust_region": theta_ref <-
        (1 - alpha) theta_ref + alpha theta every tau optimizer steps.
      granularity: "learned": one weight per checkpoint, or per checkpoint and layer.
      objective: of held-out pairs, for "learned", "best" and "greedy_soup":
        "calibrated" fits a scale exp(s) of D as well; "fixed" uses ``beta``.
      beta: scale of D under "fixed", and where exp(s) starts under "calibrated".
      kl_weight: lambda of KL(softmax(a) || uniform), of "learned".
      learning_rate, steps, batch_size: Adam on the fusion logits; pairs per step.
      start: logits at 0, or "carried" over from the last iteration, with their
        mean for the newcomer.
      length_normalized: D of mean token log-probs instead of sums.
      earlier_holdouts: learn on the held-out pairs of earlier iterations too.
    """

    rule: str = "learned"
    ema_mu: float = 0.5
    trust_region_alpha: float = 0.6
    trust_region_tau: int = 512
    granularity: Literal["model", "layer"] = "model"
    objective: Literal["calibrated", "fixed"] = "calibrated"
    beta: float = 0.1
    kl_weight: float = 0.0
    learning_rate: float = 0.1
    steps: int = 100
    batch_size: int = 64
    start: Literal["zeros", "carried"] = "zeros"
    length_normalized: bool = False
    earlier_holdouts: bool = False

    def validate(self, rules: tuple[str, ...]) -> None:
        """Raises BadInput for a value that its rule cannot use."""
        if self.rule not in rules:
            raise BadInput(
                f"reference.rule is {self.rule!r}; known rules: {', '.join(rules)}"
            )
        checks = {
            "ema_mu": (0 < self.ema_mu <= 1, "above 0 and at most 1"),
            "trust_region_alpha": (
                0 < self.trust_region_alpha <= 1,
                "above 0 and at most 1",
            ),
            "trust_region_tau": (self.trust_region_tau >= 1, "at least 1"),
            "beta": (self.beta > 0, "positive"),
            "kl_weight": (self.kl_weight >= 0, "0 or more"),
            "learning_rate": (self.learning_rate > 0, "positive"),
            "steps": (self.steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                raise BadInput(
                    f"reference.{name} is {getattr(self, name)}; use {wanted}"
                )
        for f in fields(self):
            owner = ONE_RULES.get(f.name, self.rule)
            if owner != self.rule and getattr(self, f.name) != f.default:
                raise BadInput(
                    f"reference.{f.name} has no meaning for rule {self.rule!r}, only "
                    f"for {owner!r}; leave it at {f.default}"
                )

    @property
    def uses_holdout(self) -> bool:
        """Whether the rule looks at held-out pairs."""
        return self.rule in ("learned", "best", "greedy_soup")
