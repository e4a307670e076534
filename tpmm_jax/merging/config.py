"""How the reference of an iteration is chosen."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

from tpmm_jax.errors import BadInput

# The rule of runs whose loss has no reference: nothing is merged or computed.
NO_REFERENCE = "none"
# Of ``learned`` where margins say nothing of theta_0's own weight.
LEARNED_ANCHOR_SHARE = 0.5
# Merges and passes that fit "exact" may take; of a step's halvings each is one.
MAX_EVALUATIONS = 15
# Constants of one rule.
ONE_RULES = {
    "ema_mu": "ema",
    "trust_region_alpha": "trust_region",
    "trust_region_tau": "trust_region",
}
# Rules whose reference has no weights to share out.
FIXED_RULES = ("sft", "trust_region", NO_REFERENCE)
# Fields of "learned" that not every fit reads.
OF_ADAM = ("kl_weight", "learning_rate", "steps", "batch_size", "start")
OF_LEARNED = ("fit", "granularity", *OF_ADAM)
UNREAD = {
    "margins": ("granularity", "objective", "beta", *OF_ADAM),
    "exact": OF_ADAM,
    "adam": (),
}


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """The rule, and the constants of those rules that have some.

    ema_mu and trust_region_* are refused where another rule is chosen. The fields of
    rules that use held-out pairs may be set under any rule and then do nothing, so
    that one config, written for "learned", compares them all by reference.rule alone.

    Attributes:
      rule: a key of RULES, or in a run whose loss has no reference, "none". "previous"
        by default: the study of docs/study.md showed nothing above it.
      anchor_share: theta_0's weight, 0 to below 1; the others share the rest as the
        rule has it. None: as the rule has it, but 0.5 under "learned", of whose fits
        only "adam" has a weight for theta_0.
      mix: what the weights are of: the checkpoints' "weights", summed to one model; or
        their "log_probs" of a response, log p_ref = sum_k w_k log p_k + constant, a
        geometric mixture, of which nothing is merged.
      ema_mu: "ema": theta_ema <- (1 - mu) theta_ema + mu theta_t.
      trust_region_alpha, trust_region_tau: "trust_region": theta_ref <-
        (1 - alpha) theta_ref + alpha theta every tau optimizer steps.
      holdout_window: use the held-out pairs of the last so many iterations; None: all.
      length_normalized: D of mean token log-probs instead of sums.
      fit: how "learned" finds its weights. "margins": by logistic regression on each
        checkpoint's own D, and only where that predicts held-out labels better than
        equal weights do. "exact": goes on from there through the network, by L-BFGS.
        "adam": through the network from the start, a step a minibatch.
      granularity: "exact", "adam": one weight per checkpoint, or per checkpoint and
        layer.
      objective: of held-out pairs, for "exact", "adam", "best" and "greedy_soup":
        "calibrated" fits a scale exp(s) of D as well; "fixed" uses ``beta``.
      beta: scale of D under "fixed", and where exp(s) starts under "adam".
      kl_weight: "adam": lambda of KL(softmax(a) || uniform).
      learning_rate, steps, batch_size: "adam": on the fusion logits; pairs per step.
      start: "adam": logits at 0, or "carried" over from the last iteration, with their
        mean for the newcomer.
    """

    rule: str = "previous"
    anchor_share: float | None = None
    mix: Literal["weights", "log_probs"] = "weights"
    ema_mu: float = 0.5
    trust_region_alpha: float = 0.6
    trust_region_tau: int = 512
    holdout_window: int | None = None
    length_normalized: bool = False
    fit: Literal["margins", "exact", "adam"] = "margins"
    granularity: Literal["model", "layer"] = "model"
    objective: Literal["calibrated", "fixed"] = "calibrated"
    beta: float = 0.1
    kl_weight: float = 0.0
    learning_rate: float = 0.1
    steps: int = 100
    batch_size: int = 64
    start: Literal["zeros", "carried"] = "zeros"

    def validate(
        self,
        rules: tuple[str, ...],
        name: Callable[[str], str] = "reference.{}".format,
    ) -> None:
        """Raises BadInput for a value that its rule cannot use.

        Args:
          name: what a message calls a field that "learned" reads.
        """
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
            "anchor_share": (
                self.anchor_share is None or 0 <= self.anchor_share < 1,
                "0 to below 1 (1 is theta_0 alone)",
            ),
            "holdout_window": (
                self.holdout_window is None or self.holdout_window >= 1,
                "at least 1, or none",
            ),
            "beta": (self.beta > 0, "positive"),
            "kl_weight": (self.kl_weight >= 0, "0 or more"),
            "learning_rate": (self.learning_rate > 0, "positive"),
            "steps": (self.steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
        }
        for field, (good, wanted) in checks.items():
            if not good:
                raise BadInput(f"{name(field)} is {getattr(self, field)}; use {wanted}")
        self._validate_meaning(name)

    def _validate_meaning(self, name: Callable[[str], str]) -> None:
        """Refuses what the chosen rule and fit would not read."""
        for f in fields(self):
            owner = ONE_RULES.get(f.name, self.rule)
            if owner != self.rule and getattr(self, f.name) != f.default:
                raise BadInput(
                    f"reference.{f.name} has no meaning for rule {self.rule!r}, only "
                    f"for {owner!r}; leave it at {f.default}"
                )
            unread = self.rule == "learned" and f.name in UNREAD[self.fit]
            if unread and getattr(self, f.name) != f.default:
                reads = [fit for fit in UNREAD if f.name not in UNREAD[fit]]
                raise BadInput(
                    f"{name(f.name)} has no meaning for {name('fit')}={self.fit}; "
                    f"leave it at {f.default}, or use {name('fit')}="
                    f"{' or '.join(reads)} (earlier versions used adam)"
                )
        scaled = self.rule == "learned" and self.fit == "exact"
        if scaled and self.objective == "calibrated" and self.beta != type(self).beta:
            raise BadInput(
                f"{name('beta')} is {self.beta}, but objective calibrated finds the "
                f"scale itself; leave it unset, or use {name('objective')}=fixed"
            )
        if self.rule in FIXED_RULES and self.anchor_share is not None:
            raise BadInput(
                f"reference.anchor_share is {self.anchor_share}, but rule "
                f"{self.rule!r} has no weights to share out; leave it unset"
            )

        if self.mix == "log_probs" and self.rule in FIXED_RULES:
            raise BadInput(
                f"reference.mix=log_probs needs weights, and rule {self.rule!r} has "
                "none; leave it unset"
            )
        if self.mix == "log_probs" and self.layerwise:
            raise BadInput(
                "reference.mix=log_probs mixes whole policies; reference.granularity="
                "layer has weights of layers: leave one of the two out"
            )

    @property
    def idle(self) -> list[str]:
        """The fields that were set and that only ``learned`` reads, under another."""
        if self.rule == "learned":
            return []
        # Of a run that is older than the field, fit is "adam" whatever the user said.
        free = {"fit"} if self.fit == "adam" else set()
        return [
            f.name
            for f in fields(self)
            if f.name in set(OF_LEARNED) - free and getattr(self, f.name) != f.default
        ]

    @property
    def on_margins(self) -> bool:
        """Whether the margins of each checkpoint alone decide, or begin."""
        return self.rule == "learned" and self.fit != "adam"

    @property
    def layerwise(self) -> bool:
        """Whether each layer has weights of its own."""
        return self.rule == "learned" and self.granularity == "layer"

    @property
    def evaluations(self) -> int:
        """Steps through the network that a choice takes at most; 0: none."""
        fits = {"margins": 0, "exact": MAX_EVALUATIONS, "adam": self.steps}
        return fits[self.fit] if self.rule == "learned" else 0

    @property
    def uses_holdout(self) -> bool:
        """Whether the rule looks at held-out pairs."""
        return self.rule in ("learned", "best", "greedy_soup")
