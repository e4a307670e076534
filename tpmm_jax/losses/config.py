"""Which loss, or weighted sum of losses, and the constants that it has."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from tpmm_jax.errors import BadInput

# What each loss reads beside its log-probabilities. A constant that none of the chosen
# losses reads is refused.
_DIVERGENCE = ("f_divergence_type", "f_alpha_divergence_coef")
_TOKENS = ("ld_alpha",)
_WPO = ("use_weighting",)
_ANY = (*_TOKENS, *_WPO)
USES: dict[str, tuple[str, ...]] = {
    "dpo": ("beta", *_DIVERGENCE, *_ANY),
    "cdpo": ("beta", "label_smoothing", *_DIVERGENCE, *_ANY),
    "robust": ("beta", "label_smoothing", *_DIVERGENCE, *_ANY),
    "ipo": ("beta", "length_normalized", *_DIVERGENCE, *_ANY),
    "hinge": ("beta", *_DIVERGENCE, *_ANY),
    "sigmoid_norm": ("beta", *_DIVERGENCE, *_ANY),
    "exo": ("beta", "label_smoothing", *_DIVERGENCE, *_ANY),
    "discopop": ("beta", "discopop_tau", *_DIVERGENCE, *_ANY),
    "nca": ("beta", *_ANY),
    "bco": ("beta", *_ANY),
    "sppo": ("beta", *_ANY),
    "apo_zero": ("beta", *_ANY),
    "apo_down": ("beta", *_ANY),
    "aot": ("beta", "label_smoothing", *_TOKENS),
    "aot_unpaired": ("beta", "label_smoothing", *_TOKENS),
    "beta_dpo": ("beta", "beta_gain", "beta_momentum", "beta_keep", *_TOKENS),
    "sft": (),
    "simpo": ("beta", "label_smoothing", "gamma_beta_ratio"),
    "alphapo": ("beta", "label_smoothing", "gamma_beta_ratio", "alphapo_alpha"),
    "orpo": ("beta",),
    "cpo": ("beta", "label_smoothing", "cpo_alpha"),
    "cpo_hinge": ("beta", "cpo_alpha"),
    "cpo_ipo": ("beta", "cpo_alpha"),
}
# Losses that know no reference. "sft" goes with either kind.
REFERENCE_FREE = ("simpo", "alphapo", "orpo", "cpo", "cpo_hinge", "cpo_ipo")
# Losses of mean token log-probs, whose beta is another size.
_OF_MEANS = ("simpo", "alphapo")
# Losses of which a pair's value depends on the other pairs' log-probs.
COUPLED = ("aot", "aot_unpaired", "beta_dpo")
# 0 gives log 0 in exo, and is plain DPO in the others.
_NEED_SMOOTHING = ("cdpo", "robust", "exo")
_TRL_NAMES = {
    "sigmoid": "dpo",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "bco_pair": "bco",
    "sppo_hard": "sppo",
}
DEFAULT_BETA = 0.1


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
    """

    name: str | Sequence[str] = "dpo"
    weights: Sequence[float] | None = None
    beta: float = DEFAULT_BETA
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
            return self.name
        return " + ".join(f"{weight:g} {name}" for name, weight in self.terms)

    @property
    def reference_free(self) -> bool:
        """Whether no reference enters the loss."""
        return all(name in (*REFERENCE_FREE, "sft") for name in self.names)

    @property
    def coupled(self) -> bool:
        """Whether a pair's loss depends on the other pairs' log-probs."""
        return any(name in COUPLED for name in self.names)

    def validate(self) -> None:
        """Raises BadInput for a value that no loss, or not this one, accepts."""
        _check_names(self)
        _check_meaning(self)
        _check_ranges(self)


def _check_names(config: LossConfig) -> None:
    names = config.names
    for name in names:
        if name not in USES:
            meant = _TRL_NAMES.get(name)
            hint = f"; TRL's {name!r} is {meant!r} here" if meant else ""
            raise BadInput(
                f"loss.name is {name!r}; known losses: {', '.join(USES)}{hint}"
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
    free = [name for name in names if name in REFERENCE_FREE]
    bound = [name for name in names if name not in (*REFERENCE_FREE, "sft")]
    if free and bound:
        raise BadInput(
            f"loss.name has {free[0]!r}, which knows no reference, and {bound[0]!r}, "
            "which needs one; choose losses of one kind"
        )


def _check_meaning(config: LossConfig) -> None:
    """Refuses constants that none of the chosen losses reads."""
    used = {name for loss in config.names for name in USES[loss]}
    for f in fields(config):
        if f.name in ("name", "weights") or f.name in used:
            continue
        if getattr(config, f.name) != f.default:
            owners = [loss for loss, uses in USES.items() if f.name in uses]
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
    _check_every_term(
        config,
        "use_weighting",
        config.names,
        "has no value for one pair alone",
    )
    # Its normaliser cancels in a margin only. "sft" has no ratio to transform.
    _check_every_term(
        config,
        "f_divergence_type",
        [name for name in config.names if name != "sft"],
        "is no loss of a margin, where its normaliser cancels",
    )


def _check_every_term(
    config: LossConfig, constant: str, names: Sequence[str], why: str
) -> None:
    """Refuses a constant that one of the losses of a sum does not read."""
    if getattr(config, constant) == getattr(LossConfig, constant):
        return
    for name in names:
        if constant not in USES[name]:
            raise BadInput(
                f"loss.{constant} is for every loss of the sum, and {name!r} {why}; "
                "leave one of the two out"
            )


def _check_ranges(config: LossConfig) -> None:
    eps = config.label_smoothing
    smooth = [name for name in config.names if name in _NEED_SMOOTHING]
    if smooth and not 0 < eps < 0.5:
        usual = "1e-3" if smooth[0] == "exo" else "0.1"
        raise BadInput(
            f"loss.label_smoothing is {eps}; {smooth[0]} wants a value between 0 and "
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
    }
    for f in fields(config):
        value = getattr(config, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"loss.{f.name} is {value}; use a finite number")
    for name, (good, wanted) in checks.items():
        if not good:
            raise BadInput(f"loss.{name} is {getattr(config, name)}; use {wanted}")
    means = [name for name in config.names if name in _OF_MEANS]
    if means and config.beta == DEFAULT_BETA:
        raise BadInput(
            f"loss.beta is {DEFAULT_BETA}, the default for sums of log-probs; "
            f"{means[0]} takes means over tokens and wants a larger one: 2.0 is usual, "
            "up to 10"
        )
