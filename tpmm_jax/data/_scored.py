"""Rows that hold several scored answers to one prompt, as pairs of them."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from tpmm_jax.data._ratings import as_number
from tpmm_jax.data._strict_object import json_type
from tpmm_jax.data.problems import RowFault

ScoredPairs: TypeAlias = Literal["best_worst", "all"]
_LISTS = ("responses", "completions", "answers", "candidates", "outputs")
# Whether the higher number is the better one.
_NUMBERS = {"scores": True, "rewards": True, "ratings": True, "ranks": False}
_TEXTS = ("response", "completion", "answer", "text", "content", "output")
_NUMBER = {
    **{"score": True, "overall_score": True, "rating": True, "reward": True},
    "rank": False,
}
SCORED_COLUMNS = (*_LISTS, *_NUMBERS)


class ScoredAnswers(NamedTuple):
    """The answers of a row.

    Attributes:
      columns: those that they and their scores were read from.
      worth: of each answer; the higher, the better.
      ranked: they are ranks, whose differences say nothing.
    """

    columns: tuple[str, ...]
    answers: list[Any]
    worth: list[float]
    ranked: bool = False

    def choose(self, how: ScoredPairs) -> list[tuple[int, int]]:
        """(better, worse) of each pair; none of equal scores, of these the first."""
        order = sorted(range(len(self.worth)), key=lambda n: -self.worth[n])
        best, lowest = order[0], min(self.worth)
        worst = self.worth.index(lowest)
        chosen = [(best, worst)]
        if how == "all":
            chosen = [(i, j) for at, i in enumerate(order) for j in order[at + 1 :]]
        return [(i, j) for i, j in chosen if self.worth[i] > self.worth[j]]

    def margin(self, better: int, worse: int) -> float | None:
        """By how much one answer's score is above another's; None of ranks."""
        return None if self.ranked else self.worth[better] - self.worth[worse]


def find_answers(data: Mapping[str, Any]) -> ScoredAnswers | None:
    """The scored answers of a row; None if it has no column of such a name.

    Raises:
      RowFault: answers that cannot be read, or that have no score each.
    """
    lists = [name for name in _LISTS if data.get(name) is not None]
    if not lists:
        return None
    column, values = lists[0], data[lists[0]]
    if len(lists) > 1:
        raise RowFault(
            f"fields {lists[0]!r} and {lists[1]!r} both may hold the answers; leave "
            "one of them",
            lists[1],
        )
    if not isinstance(values, list):
        raise RowFault(
            f"field {column!r} is {json_type(values)}; wanted a list of answers",
            column,
        )
    if len(values) < 2:
        raise RowFault(
            f"field {column!r} holds {len(values)} answers; wanted 2 or more", column
        )
    if (inner := _common_key(values)) is not None:
        answers = [_text(value, column, n) for n, value in enumerate(values)]
        worth = [
            _number(v[inner], _NUMBER[inner], f"{column}[{n}].{inner}", column)
            for n, v in enumerate(values)
        ]
        return ScoredAnswers((column,), answers, worth, not _NUMBER[inner])
    name = _key(data, _NUMBERS)
    if name is None:
        raise RowFault(
            f"field {column!r} holds answers without scores; wanted one of "
            f"{', '.join(_NUMBERS)} beside it, or objects that all have one of "
            f"{', '.join(_NUMBER)}, or the columns chosen and rejected",
            column,
        )
    numbers = data[name]
    if not isinstance(numbers, list) or len(numbers) != len(values):
        came = f"{len(numbers)} items" if isinstance(numbers, list) else "no list"
        raise RowFault(
            f"field {name!r} has {came} for the {len(values)} answers of {column!r}",
            name,
        )
    worth = [
        _number(n, _NUMBERS[name], f"{name}[{at}]", name)
        for at, n in enumerate(numbers)
    ]
    return ScoredAnswers((column, name), values, worth, not _NUMBERS[name])


def _key(data: Mapping[str, Any], names: Mapping[str, bool]) -> str | None:
    return next((name for name in names if data.get(name) is not None), None)


def _common_key(values: list[Any]) -> str | None:
    """The score that all answers have: those of two scales cannot be compared."""
    if not all(isinstance(value, dict) for value in values):
        return None
    held = (n for n in _NUMBER if all(v.get(n) is not None for v in values))
    return next(held, None)


def _text(value: Mapping[str, Any], column: str, number: int) -> Any:
    found = [name for name in _TEXTS if value.get(name) is not None]
    if len(found) != 1:
        came = " and ".join(found) or f"the keys {', '.join(sorted(value)[:8])}"
        raise RowFault(
            f"field '{column}[{number}]' has {came}; wanted the answer as one of "
            f"{', '.join(_TEXTS)}",
            column,
        )
    return value[found[0]]


def _number(value: Any, higher: bool, where: str, column: str) -> float:
    number = as_number(value)
    if number is None:
        raise RowFault(
            f"field {where!r} is {value!r}; wanted a finite number"[:200], column
        )
    return number if higher else -number
