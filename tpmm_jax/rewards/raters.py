"""All that rates answers: the scorer that labels, further scorers, judges."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tpmm_jax.errors import BadInput
from tpmm_jax.rewards.judges import NamedJudge, load_judge
from tpmm_jax.rewards.scorer import (
    Scorer,
    ScorerConfig,
    import_object,
    load_scorer,
    probe,
    score,
)

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class NamedScorer:
    """A scorer whose every answer is checked (see ``scorer.score``).

    Attributes:
      name: as messages give it.
    """

    name: str
    function: Scorer

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """Returns rewards_BR, float64."""
        return score(self.function, prompts, responses, name=self.name)


@dataclass(frozen=True)
class Raters:
    """What rates answers. None of them sees which policy wrote what.

    Attributes:
      scorer: the one that labels: "rewards"; None without one.
      scorers: further ones by label: "scores".
      judges: by label.
    """

    scorer: NamedScorer | None = None
    scorers: Mapping[str, NamedScorer] = field(default_factory=dict)
    judges: Mapping[str, NamedJudge] = field(default_factory=dict)

    def labelling(self) -> "Raters":
        """Returns only what labels rollouts."""
        return Raters(self.scorer)

    def probe(self, prompt: str, num_responses: int) -> None:
        """Calls each once on made-up answers, before anything expensive."""
        scorers = [] if self.scorer is None else [self.scorer]
        for one in (*scorers, *self.scorers.values()):
            probe(one.function, one.name, prompt, num_responses)
        for judge in self.judges.values():
            judge.probe(prompt)


def load_raters(
    scorer: ScorerConfig,
    scorers: Mapping[str, str],
    judges: Mapping[str, str],
    *,
    scorers_field: str = "evaluation.scorers",
    judges_field: str = "evaluation.judges",
) -> Raters:
    """Returns the raters that "module:function" names give.

    Raises:
      BadInput: names the field, and what cannot be imported.
    """
    labelling = None
    if scorer.name is not None:
        labelling = NamedScorer(scorer.name, load_scorer(scorer))
    return Raters(
        labelling,
        {
            label: NamedScorer(
                f"{label} ({name})", import_object(name, f"{scorers_field}.{label}")
            )
            for label, name in sorted(scorers.items())
        },
        {
            label: load_judge(label, name, f"{judges_field}.{label}")
            for label, name in sorted(judges.items())
        },
    )


def check_label(label: str, what: str) -> None:
    """Raises BadInput for a name that cannot be part of a metric's or a file's name."""
    if not _LABEL.fullmatch(label):
        raise BadInput(
            f"{what}: the name {label!r} is part of names of metrics and files; use "
            "letters, digits, - and _ only"
        )
