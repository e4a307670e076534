"""Which scorer labels the rollouts: one, or several that count as one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from tpmm_jax.errors import BadInput
from tpmm_jax.stopping import TIMEOUT

# Where a run keeps the centre and the scale of its scorer's rewards.
SCALE = "scorer.json"
# What changes no reward: how long calls take, and how they are checked.
_MANNER: Mapping[str, Any] = {"timeout": TIMEOUT, "retries": 0, "deterministic": True}


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """Which scorer labels the rollouts, and what becomes of its rewards.

    In this order: each scorer rates; its rewards are clipped, then normalised; they are
    summed by weight; the length penalty is taken off.

    Attributes:
      name: "module:function"; "reward:SOURCE", a reward model; "judge:SOURCE", a model
        that compares the answers to a prompt; or several, which count as one scorer.
        None: no scorer (offline pairs).
      weights: of several scorers, one each; None: their mean. They may be below 0.
      ensemble: "predictions": the rewards of several scorers are summed. "weights": the
        weights of several reward models of one architecture are, once (WARM).
      length_penalty: taken off the reward for each token of the response, by the
        policy's tokenizer, its end included.
      normalise: each scorer's rewards less their mean over theta_0's answers to the
        evaluation prompts, divided by their standard deviation there; both are fixed
        for the run.
      clip: each scorer's rewards are held within so many of these standard deviations
        of that mean; None: they are not.
      options: keyword arguments that the function is called with; of several scorers
        each one is.
      timeout: seconds that one call may take, for one batch; None: for ever.
      retries: how often a call of any scorer or judge that raises is repeated, after
        1, 2, 4 ... seconds. A wrong shape, a number that is not finite and a time-out
        are final.
      deterministic: whether scorers and judges say the same of the same texts. Then
        each start rates a stored batch again, and refuses to mix two versions of one.
        For single further scorers and judges there is evaluation.random.
    """

    name: str | Sequence[str] | None = None
    weights: Sequence[float] | None = None
    ensemble: Literal["predictions", "weights"] = "predictions"
    length_penalty: float = 0.0
    normalise: bool = False
    clip: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = TIMEOUT
    retries: int = 0
    deterministic: bool = True

    def __post_init__(self) -> None:
        # Lists, as config files and JSON have them.
        for name in ("name", "weights"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each scorer."""
        if self.name is None:
            return ()
        return (self.name,) if isinstance(self.name, str) else tuple(self.name)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of each scorer, or of each model."""
        if self.weights is not None:
            return tuple(map(float, self.weights))
        return (1 / len(self.names),) * len(self.names)

    @property
    def scaled(self) -> bool:
        """Whether theta_0's answers say where rewards are centred, or clipped."""
        return self.normalise or self.clip is not None

    @property
    def combined(self) -> bool:
        """Whether the reward is another than what one scorer says."""
        several = self.ensemble == "predictions" and not isinstance(self.name, str)
        return several or self.scaled or self.length_penalty != 0

    @property
    def title(self) -> str:
        """The scorer for people: its name, or its members and what is done to them."""
        text = self._members()
        if self.clip is not None:
            text += f", clipped at {self.clip:g} deviations"
        if self.normalise:
            text += ", normalised"
        if self.length_penalty:
            text += f", less {self.length_penalty:g} a token"
        return text

    def _members(self) -> str:
        names = self.names
        if isinstance(self.name, str) or not names:
            return "".join(names)
        of = " of the weights" if self.ensemble == "weights" else ""
        if self.weights is None:
            return f"mean{of} of {', '.join(names)}"
        terms = " + ".join(f"{w:g} {n}" for w, n in zip(self.weights, names))
        return f"sum{of} {terms}" if of else terms

    def validate(self) -> None:
        """Raises BadInput for a value out of range, or that nothing would read."""
        if self.retries < 0:
            raise BadInput(f"scorer.retries is {self.retries}; use 0 or more")
        self._check_names()
        self._check_weights()
        if self.length_penalty < 0:
            raise BadInput(
                f"scorer.length_penalty is {self.length_penalty}; use 0 or more: it "
                "is taken off the reward for every token"
            )
        if self.clip is not None and self.clip <= 0:
            raise BadInput(
                f"scorer.clip is {self.clip}; use a number of standard deviations "
                "above 0 (5 is usual), or none"
            )

    def _check_names(self) -> None:
        if self.name is not None:
            check_names(self.name, "scorer.name")
        else:
            for f in fields(self):
                free = f.name in (*_MANNER, "name", "options")
                if not free and getattr(self, f.name) != f.default:
                    raise BadInput(
                        f"scorer.{f.name} is {getattr(self, f.name)!r} without "
                        "scorer.name: no scorer would read it; leave it unset"
                    )

    def _check_weights(self) -> None:
        listed = self.name is not None and not isinstance(self.name, str)
        averaged = self.ensemble == "weights"
        if averaged and (not listed or len(self.names) < 2):
            raise BadInput(
                f'scorer.ensemble="weights" with scorer.name {self.name!r}: use a list '
                "of two or more reward models"
            )
        if self.weights is None:
            return
        shown = f"scorer.weights is {list(self.weights)}"
        if not listed or len(self.weights) != len(self.names):
            raise BadInput(
                f"{shown} for scorer.name {self.name!r}; use a list of scorers and one "
                "weight each"
            )
        if 0 in self.weights:
            raise BadInput(
                f"{shown}; a scorer of the weight 0 would be asked for nothing: leave "
                "it out"
            )
        total = sum(self.weights)
        if averaged and not (min(self.weights) > 0 and abs(total - 1) < 1e-6):
            raise BadInput(
                f"{shown}, which sum to {total:g}; models are averaged with weights "
                "above 0 that sum to 1"
            )


def check_names(name: str | Sequence[str], field_name: str) -> None:
    """Raises BadInput for a list of scorers that is empty, or names one twice."""
    if not isinstance(name, str) and (not name or len(set(name)) != len(name)):
        raise BadInput(
            f"{field_name} is {list(name)}; use one or more scorers, each of them once"
        )


def read_name(text: str, field_name: str) -> str | Sequence[str]:
    """Returns the scorer, or the list of scorers, that an option's text names.

    >>> read_name('["a:b", "reward:runs/rm"]', "--scorer")
    ('a:b', 'reward:runs/rm')
    """
    if not text.startswith("["):
        return text
    try:
        names = json.loads(text)
        if not all(isinstance(name, str) for name in names):
            raise ValueError("not a list of texts")
    except ValueError as error:
        raise BadInput(
            f"{field_name} {text}: {error}; wanted a scorer, or a JSON list of "
            """scorers such as '["my_scores:a", "reward:runs/rm"]'"""
        ) from None
    check_names(names, field_name)
    return tuple(names)


def stored_scorer(section: Mapping[str, Any] | None) -> ScorerConfig:
    """Returns the scorer that a stored config.json names.

    Args:
      section: its "scorer"; of another version it may have fewer fields, or more.
    """
    given = section if isinstance(section, Mapping) else {}
    known = {f.name for f in fields(ScorerConfig)}
    return ScorerConfig(**{k: v for k, v in given.items() if k in known})


def says(scorer: ScorerConfig) -> ScorerConfig:
    """Returns what decides a scorer's rewards: all but how it is called and checked."""
    return replace(scorer, **_MANNER)
