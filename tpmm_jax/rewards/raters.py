"""All that rates answers: the scorer that labels, further scorers, judges."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from tpmm_jax.errors import BadInput
from tpmm_jax.rewards.combination import Average, load_scorer, no_average
from tpmm_jax.rewards.judges import NamedJudge
from tpmm_jax.rewards.margins import LABEL, MARGINS
from tpmm_jax.rewards.scorer import (
    Find,
    Known,
    Limits,
    NamedScorer,
    find_function,
    import_object,
)
from tpmm_jax.rewards.scorer_config import ScorerConfig
from tpmm_jax.stopping import TIMEOUT

# Fields of a run's config: of the labelling scorer, and behind these the labels of
# further scorers and of judges.
SCORER, SCORERS, JUDGES = "scorer.name", "evaluation.scorers.", "evaluation.judges."
T = TypeVar("T", NamedScorer, NamedJudge)
M = TypeVar("M")
# Makes a judge of (its name, the field that names it, limits).
FindJudge = Callable[[str, str, Limits], NamedJudge]
_MEMBER = re.compile(r"\[\d+\]$")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Raters:
    """What rates answers. None of them sees which policy wrote what.

    Attributes:
      scorer: the one that labels: "rewards"; None without one.
      scorers: further ones by label: "scores".
      judges: by label.
      margins: what the margins of pairs come from; None: nothing, or a column.
    """

    scorer: NamedScorer | None = None
    scorers: Mapping[str, NamedScorer] = field(default_factory=dict)
    judges: Mapping[str, NamedJudge] = field(default_factory=dict)
    margins: NamedScorer | None = None

    def labelling(self) -> "Raters":
        """Returns what rates rollouts: the scorer, and what margins come from."""
        source = self.margins
        return Raters(self.scorer, {} if source is None else {LABEL: source})

    def digests(self) -> dict[str, str]:
        """Returns {field of a run's config: digest} of those that are models.

        Of several scorers in one the fields are "scorer.name[0]" and so on.
        """
        whole = {} if self.scorer is None else {SCORER: self.scorer}
        whole |= {SCORERS + label: one for label, one in self.scorers.items()}
        named: dict[str, NamedScorer | NamedJudge | None] = {
            name: part
            for field_name, one in whole.items()
            for name, part in member_fields(field_name, one.parts).items()
        }
        named |= {JUDGES + label: one for label, one in self.judges.items()}
        named[MARGINS] = self.margins
        return {k: one.digest for k, one in named.items() if one and one.digest}

    def columns(self) -> dict[str, str]:
        """Returns {column beside the prompts: the first scorer that asks for it}."""
        scorers = [*filter(None, [self.scorer, self.margins]), *self.scorers.values()]
        return {c: one.name for one in reversed(scorers) for c in one.columns}

    def refuse_filled(self, unread: Collection[str], what: str) -> None:
        """Refuses an option of a scorer that has the name of an unread column.

        Args:
          unread: columns beside the prompts that nothing reads.
          what: holds them, for messages.

        Raises:
          BadInput: names the option, the scorer and the column.
        """
        fields = {"scorer.options": self.scorer, "madpo.options": self.margins}
        for option, one in fields.items():
            parts = () if one is None else one.parts
            filled = [name for part in parts for name in part.filled]
            for column in (name for name in filled if name in unread):
                raise BadInput(
                    f"{what} has the column {column!r}, and {option} gives the "
                    f"scorer's parameter {column!r}: which of them is meant? Remove "
                    "the option, or name the column in data.ignore_columns"
                )

    def probe(
        self, prompt: str, num_responses: int, known: Known | None = None
    ) -> dict[str, np.ndarray]:
        """Calls each once on made-up answers, before anything expensive.

        Args:
          known: of the prompt.

        Returns:
          {field of a run's config: what its function said}
        """
        scorers = {} if self.scorer is None else {SCORER: self.scorer}
        scorers |= {SCORERS + label: one for label, one in self.scorers.items()}
        scorers |= {} if self.margins is None else {MARGINS: self.margins}
        said = {
            k: one.probe(prompt, num_responses, known) for k, one in scorers.items()
        }
        return said | {JUDGES + k: one.probe(prompt) for k, one in self.judges.items()}


def member_fields(field_name: str, members: Sequence[M]) -> dict[str, M]:
    """Returns {field: member}; one that is alone has the field itself.

    >>> member_fields("scorer.name", ["a:b", "c:d"])
    {'scorer.name[0]': 'a:b', 'scorer.name[1]': 'c:d'}
    """
    if len(members) == 1:
        return {field_name: members[0]}
    return {f"{field_name}[{k}]": one for k, one in enumerate(members)}


def whole_field(field_name: str) -> str:
    """Returns the field of a rater; of one of several scorers that of all of them."""
    return _MEMBER.sub("", field_name)


def find_judge_function(name: str, field_name: str, limits: Limits) -> NamedJudge:
    """Returns the judge that a "module:function" is."""
    function = import_object(name, field_name)
    return NamedJudge(name, function, limits.timeout, limits.option, limits.retries)


def load_raters(
    scorer: ScorerConfig,
    scorers: Mapping[str, str | Sequence[str]],
    judges: Mapping[str, str],
    *,
    scorer_field: str = SCORER,
    scorers_field: str = "evaluation.scorers",
    judges_field: str = "evaluation.judges",
    timeout: float | None = TIMEOUT,
    timeout_option: str | None = None,
    find: Find = find_function,
    find_judge: FindJudge = find_judge_function,
    average: Average = no_average,
) -> Raters:
    """Returns the raters that names give.

    Args:
      scorers: further ones by label; a list of names is their mean.
      timeout: seconds that a call of a further scorer or a judge may take.
      timeout_option: what sets the time-outs; None: the fields of a config.
      find, find_judge: make a scorer, or a judge, of a name; by default names are
        "module:function".
      average: makes one scorer of models that are averaged in weights.

    Raises:
      BadInput: names the field, and what cannot be imported.
    """
    own = timeout_option or "scorer.timeout"
    option = timeout_option or "evaluation.timeout"
    limits = Limits(timeout, option, scorer.retries)

    def further(label: str, name: str | Sequence[str]) -> NamedScorer:
        config = ScorerConfig(name=name, timeout=timeout, retries=scorer.retries)
        place = f"{scorers_field}.{label}"
        return _labelled(label, load_scorer(config, option, place, find=find))

    return Raters(
        None
        if scorer.name is None
        else load_scorer(scorer, own, scorer_field, find=find, average=average),
        {label: further(label, name) for label, name in sorted(scorers.items())},
        {
            label: _labelled(label, find_judge(n, f"{judges_field}.{label}", limits))
            for label, n in sorted(judges.items())
        },
    )


def _labelled(label: str, rater: T) -> T:
    return replace(rater, name=f"{label} ({rater.name})")


def check_label(label: str, what: str) -> None:
    """Raises BadInput for a name that cannot be part of a metric's or a file's name."""
    if not _LABEL.fullmatch(label):
        raise BadInput(
            f"{what}: the name {label!r} is part of names of metrics and files; use "
            "letters, digits, - and _ only"
        )
