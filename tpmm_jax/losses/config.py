"""Which loss, or weighted sum of losses, and the constants that it has."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from tpmm_jax.errors import BadInput
from tpmm_jax.losses.objective import Objective
from tpmm_jax.losses.registry import (
    LOSSES,
    OF_MARGINS,
    is_coupled,
    is_reference_free,
    names_of,
    sees_batch,
)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which loss, and its constants; those of another loss are refused.

    Attributes:
      name: a key of LOSSES, or several, whose weighted sum is taken.
      weights: of several losses, one each; 1 by default.
      beta: inverse temperature of the implicit reward; "orpo": lambda.
      label_smoothing: assumed share of flipped labels.
      length_normalized: "ipo": D of mean token log-probs (current practice) or of sums
        (the paper).
      f_divergence_type: what takes the place of the reverse KL; its f' is applied to
        the log-ratios of losses of a margin.
      f_alpha_divergence_coef: alpha of "alpha_divergence".
      ld_alpha: LD-DPO: weight in [0, 1] of tokens beyond the shorter completion's
        length, for policy and reference alike; None: 1.
      use_weighting: WPO: pairs are weighted by how likely the policy finds them.
      discopop_tau: temperature of DiscoPOP's blend.
      gamma_beta_ratio: "simpo": target margin over beta, in mean log-probs.
      alphapo_alpha: exponent of AlphaPO's reward; not 0, which is SimPO.
      cpo_alpha: weight of CPO's likelihood term; 0 leaves it out.
      beta_gain, beta_momentum, beta_keep: "beta_dpo": how strongly beta follows D, of
        the moving mean and deviation, and the share of pairs that is kept.
      dr_beta: "dr_dpo": its beta', below which pairs of large losses count less.
      c_max, tau, lam: "madpo": what small margins of the rewards are stretched by, from
        where on they are shrunk, and how steeply one gives way to the other.
    """

    name: str | Sequence[str] = "dpo"
    weights: Sequence[float] | None = None
    beta: float = 0.1
    label_smoothing: float = 0.0
    length_normalized: bool = True
    f_divergence_type: Literal[
        "reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"
    ] = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    ld_alpha: float | None = None
    use_weighting: bool = False
    discopop_tau: float = 0.05
    gamma_beta_ratio: float = 0.25
    alphapo_alpha: float = 0.25
    cpo_alpha: float = 1.0
    beta_gain: float = 0.6
    beta_momentum: float = 0.9
    beta_keep: float = 0.8
    dr_beta: float = 1.0
    c_max: float = 4.0
    tau: float = 6.907
    lam: float = 1.0

    def __post_init__(self) -> None:
        # Lists, as config files and JSON have them; a static argument must be hashable.
        for name in ("name", "weights"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def terms(self) -> tuple[tuple[str, float], ...]:
        """The (name, weight) of each loss of the sum."""
        names = self.names
        weights = self.weights or (1.0,) * len(names)
        return tuple(zip(names, weights, strict=True))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the losses of the sum."""
        return (self.name,) if isinstance(self.name, str) else tuple(self.name)

    @property
    def title(self) -> str:
        """The loss in a word or a sum, for people."""
        if isinstance(self.name, str):
            return title_of(self.name, self.length_normalized)
        return " + ".join(
            f"{weight:g} {title_of(name, self.length_normalized)}"
            for name, weight in self.terms
        )

    @property
    def reference_free(self) -> bool:
        """Whether no reference enters the loss."""
        return is_reference_free(self.names)

    @property
    def coupled(self) -> bool:
        """Whether a pair's loss depends on the other pairs' log-probs."""
        return is_coupled(self.names)

    @property
    def sees_batch(self) -> bool:
        """Whether it matters which pairs share a batch, beyond the order of steps."""
        return sees_batch(self.names)

    @property
    def needs_margins(self) -> bool:
        """Whether a loss of the sum reads the rewards' margins."""
        return any(LOSSES[name].needs_margins for name in self.names)

    @property
    def of_margins(self) -> bool:
        """Whether the reference enters in a pair's D alone, as a difference of sums."""
        means = "ipo" in self.names and self.length_normalized
        divergence = self.f_divergence_type != "reverse_kl"
        # LD-DPO splits a response, and the constant of a prefix does not cancel.
        split = self.ld_alpha not in (None, 1)
        whole = not means and not divergence and not split
        return whole and {*self.names} <= {*OF_MARGINS}

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields that the losses of the sum read."""
        return tuple(
            dict.fromkeys(f for name in self.names for f in LOSSES[name].reads)
        )

    def objective(self) -> Objective:
        """Returns the sum of losses as compiled programs take it.

        Constants are arguments; flags, and constants that are None or 0, are structure.

        >>> LossConfig(name="cpo").objective().constants
        {'beta': 0.1, 'cpo_alpha': 1.0}
        """
        # beta is also what logged rewards are multiplied with.
        values = {name: getattr(self, name) for name in ("beta", *self.reads)}
        at_one = abs(self.f_alpha_divergence_coef - 1) < 1e-6
        if self.f_divergence_type == "alpha_divergence" and at_one:
            # The limit at alpha = 1, where the formula is 0 / 0.
            values["f_divergence_type"] = "reverse_kl"
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        values |= numbers
        constants = {name: value for name, value in numbers.items() if value != 0}
        structure = {name: values[name] for name in values if name not in constants}
        return Objective(
            names=self.names,
            structure=tuple(structure.items()),
            constants=constants,
            weights=None if self.weights is None else tuple(map(float, self.weights)),
        )

    def validate(self) -> None:
        """Raises BadInput for a value that no loss, or not this one, accepts."""
        _check_names(self)
        _check_meaning(self)
        _check_ranges(self)


def title_of(name: str, length_normalized: bool = True) -> str:
    """Returns a loss's name for people; of IPO's two forms it says which.

    >>> title_of("ipo", True), title_of("ipo", False)
    ('ipo of mean log-probs', 'ipo of summed log-probs')
    """
    if name != "ipo":
        return name
    return f"ipo of {'mean' if length_normalized else 'summed'} log-probs"


def _check_names(config: LossConfig) -> None:
    names = config.names
    for name in names:
        if name not in LOSSES:
            ours = [ours for ours, loss in LOSSES.items() if loss.trl_name == name]
            hint = f"; TRL's {name!r} is {ours[0]!r} here" if ours else ""
            raise BadInput(
                f"loss.name is {name!r}; known losses: {', '.join(LOSSES)}{hint}"
            )
    if not names or len(set(names)) != len(names):
        raise BadInput(
            f"loss.name is {list(names)}; use one or more losses, each of them once"
        )
    if config.weights is not None:
        if isinstance(config.name, str) or len(config.weights) != len(names):
            raise BadInput(
                f"loss.weights is {list(config.weights)} for loss.name {config.name!r};"
                " use a list of losses and one weight each"
            )
        if not all(0 < weight < float("inf") for weight in config.weights):
            raise BadInput(
                f"loss.weights is {list(config.weights)}; use positive, finite numbers"
            )
    free = [name for name in names if name in names_of("reference_free")]
    bound = [name for name in names if not is_reference_free([name])]
    if free and bound:
        raise BadInput(
            f"loss.name has {free[0]!r}, which has no reference, and {bound[0]!r}, "
            "which needs one; choose losses of one kind"
        )


def _check_meaning(config: LossConfig) -> None:
    """Refuses constants that none of the chosen losses reads."""
    for f in fields(config):
        read = f.name in ("name", "weights", *config.reads)
        if not read and getattr(config, f.name) != f.default:
            owners = [name for name, loss in LOSSES.items() if f.name in loss.reads]
            raise BadInput(
                f"loss.{f.name} has no meaning for {config.title}, only for "
                f"{', '.join(owners)}; leave it at {f.default}"
            )
    if (
        config.f_divergence_type != "alpha_divergence"
        and config.f_alpha_divergence_coef != 0.5
    ):
        raise BadInput(
            "loss.f_alpha_divergence_coef has no meaning for f_divergence_type "
            f"{config.f_divergence_type!r}, only for 'alpha_divergence'"
        )
    why = "has no value for one pair alone"
    _check_every_term(config, "use_weighting", config.names, why)
    # Its normaliser cancels in a margin only. "sft" has no ratio to transform.
    names = [name for name in config.names if name != "sft"]
    why = "is not a loss of a margin, where its normaliser cancels"
    _check_every_term(config, "f_divergence_type", names, why)


def _check_every_term(
    config: LossConfig, constant: str, names: Sequence[str], why: str
) -> None:
    """Refuses a constant that one of the losses of a sum does not read."""
    if getattr(config, constant) == getattr(LossConfig, constant):
        return
    for name in names:
        if constant not in LOSSES[name].reads:
            raise BadInput(
                f"loss.{constant} applies to every loss of the sum, but {name!r} "
                f"{why}; leave one of the two out"
            )


def _check_ranges(config: LossConfig) -> None:
    eps = config.label_smoothing
    # 0 gives log 0 in exo, and is plain DPO in the others.
    name, usual = _find_usual(config, "label_smoothing")
    if name and not 0 < eps < 0.5:
        raise BadInput(
            f"loss.label_smoothing is {eps}; {name} wants a value between 0 and "
            f"0.5 ({usual} is usual)"
        )
    ld, tau, alpha = config.ld_alpha, config.discopop_tau, config.alphapo_alpha
    checks = {
        "beta": (config.beta > 0, "a positive number"),
        "label_smoothing": (0 <= eps < 0.5, "at least 0 and below 0.5"),
        "ld_alpha": (ld is None or 0 <= ld <= 1, "in [0, 1], or none"),
        "discopop_tau": (tau > 0, "a positive number"),
        "gamma_beta_ratio": (config.gamma_beta_ratio >= 0, "0 or more"),
        "alphapo_alpha": (alpha != 0, "a number that is not 0, or simpo"),
        "cpo_alpha": (config.cpo_alpha >= 0, "0 or more"),
        "beta_gain": (config.beta_gain >= 0, "0 or more"),
        "beta_momentum": (0 <= config.beta_momentum < 1, "in [0, 1)"),
        "beta_keep": (0 < config.beta_keep <= 1, "above 0 and at most 1"),
        "dr_beta": (config.dr_beta > 0, "a positive number"),
        "c_max": (config.c_max >= 1, "1 or more (1 is DPO)"),
        "tau": (config.tau > 0, "a positive number"),
        "lam": (config.lam > 0, "a positive number"),
    }
    for f in fields(config):
        value = getattr(config, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"loss.{f.name} is {value}; use a finite number")
    for name, (good, wanted) in checks.items():
        if not good:
            raise BadInput(f"loss.{name} is {getattr(config, name)}; use {wanted}")
    name, usual = _find_usual(config, "beta")
    if name and config.beta == LossConfig.beta:
        raise BadInput(
            f"loss.beta is {config.beta}, the default for sums of log-probs; "
            f"{name} takes means over tokens and wants a larger one: {usual} is usual, "
            "up to 10"
        )


def _find_usual(config: LossConfig, constant: str) -> tuple[str, str]:
    """Returns the first loss without a right default of a constant, and the usual."""
    for name in config.names:
        if constant in LOSSES[name].usual:
            return name, LOSSES[name].usual[constant]
    return "", ""
