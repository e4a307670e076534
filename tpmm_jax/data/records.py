"""What a run's files hold, a record per line: answers, labelled pairs, judgements.

Fields stand in the order of a line's keys. What a record lacks (None, or no scores) is
left out of its line.
"""

import functools
import json
import pathlib
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from tpmm_jax.data._parts import PreferencePair
from tpmm_jax.errors import CorruptCheckpoint


@dataclass(frozen=True, slots=True)
class PairRow:
    """One pair as token ids, from text or from sampling; EOS is part of the ids.

    Attributes:
      margin: by how much chosen leads rejected, if anything says so.
      group: the same for all pairs of one prompt, whatever its case and white space.
      pair: what it was written from, in the format in which it was; None of sampling.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    origin: str = ""
    margin: float | None = None
    group: str = ""
    pair: PreferencePair | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A prompt and the answers that a policy gave.

    Attributes:
      rewards: of each answer by the scorer that labels.
      spread: how far its members are apart on each answer, where it has several: the
        population standard deviation.
      unread: of a judge that labels, its replies about the prompt's answers that could
        not be read, and are ties.
      disagreed: of such a judge, of how many two answers it prefers the same place in
        both orders.
      scores: of each answer by further scorers, by label.
      held_out: whether the prompt trains nothing.
      response_ids: EOS is part of them, where the answer came to an end.
    """

    prompt: str
    responses: list[str]
    rewards: list[float] | None = None
    spread: list[float] | None = None
    unread: list[str] | None = None
    disagreed: int | None = None
    scores: dict[str, list[float]] = field(default_factory=dict)
    held_out: bool
    prompt_ids: list[int]
    response_ids: list[list[int]]

    def __post_init__(self) -> None:
        columns: list[Sequence[Any]] = [self.response_ids, *self.scores.values()]
        columns += [x for x in (self.rewards, self.spread) if x is not None]
        sizes = {len(x) for x in columns}
        if not self.responses or sizes != {len(self.responses)}:
            raise ValueError("wanted as many rewards, scores and ids as responses")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPair:
    """One pair of an iteration, and how it was labelled.

    Attributes:
      chosen_reward, rejected_reward: of sampled answers.
      origin: of an offline pair: where it stands in its source.
      flipped: whether its label was swapped on purpose.
      margin: the reward of chosen minus that of rejected by the margins' source, as the
        run uses it; None without one.
      relabelled: True where the sign of the margin gave the label.
    """

    prompt: str
    chosen: str
    rejected: str
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    origin: str | None = None
    flipped: bool
    held_out: bool
    margin: float | None = None
    relabelled: bool | None = None
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A judge's verdict on one answer, asked in both orders.

    Attributes:
      set: the prompts' name.
      against: the other policy's name.
      prompt, sample: the answer's place.
      first, second: the judge's share for the first text, with ours first and with
        ours second.
      win: our share, free of a preference for a place.
      unread: how many of the two replies of a model could not be read, and are ties.
      replies: a model's words, with ours first and with ours second.
    """

    set: str
    judge: str
    against: str
    prompt: int
    sample: int
    first: float
    second: float
    win: float
    unread: int | None = None
    replies: list[str] | None = None


Record = TypeVar("Record", Rollout, LabelledPair, Judgement)
# The types that a value read from JSON may have.
_JSON: Mapping[Any, set[type]] = {
    bool: {bool}, int: {int}, float: {int, float}, str: {str}
}  # fmt: skip


def to_line(record: Rollout | LabelledPair | Judgement) -> str:
    """Returns a record as one line of JSON."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return json.dumps({k: v for k, v in values.items() if v not in (None, {})})


def parse_lines(
    kind: type[Record], lines: Iterable[str | bytes], path: pathlib.Path | None
) -> list[Record]:
    """Returns the records of a file's lines.

    Raises:
      CorruptCheckpoint: a line that holds none; names the file, the line and the field.
    """
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_parse(kind, line))
        except (ValueError, RecursionError) as error:
            raise CorruptCheckpoint(
                f"{path}, line {number} is not a {kind.__name__} ({error}); restore "
                "the file from a copy"
            ) from None
    return records


def _parse(kind: type[Record], line: str | bytes) -> Record:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object")
    wanted = _wanted(kind)  # type: ignore[arg-type]  # a class is hashable
    for name, (hint, needed) in wanted.items():
        if name in row and not _fits(row[name], hint):
            raise ValueError(f"{name} is {reprlib.repr(row[name])}; wanted {hint}")
        if needed and name not in row:
            raise ValueError(f"{name} is missing")
    return kind(**{name: row[name] for name in wanted if name in row})


@functools.cache
def _wanted(kind: type) -> dict[str, tuple[Any, bool]]:
    """Returns {field: (its type, whether a line must have it)}."""
    hints = typing.get_type_hints(kind)
    return {
        f.name: (hints[f.name], f.default is f.default_factory is MISSING)
        for f in fields(kind)
    }


def _fits(value: Any, hint: Any) -> bool:
    if hint in _JSON:
        return type(value) in _JSON[hint]
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is types.UnionType:
        return any(_fits(value, one) for one in inner if one is not types.NoneType)
    if kind is dict:
        return isinstance(value, dict) and _all_fit(value.values(), inner[1])
    return isinstance(value, list) and _all_fit(value, inner[0])


def _all_fit(values: Iterable[Any], hint: Any) -> bool:
    if hint in _JSON:
        # All at once: there may be millions of ids.
        return set(map(type, values)) <= _JSON[hint]
    return all(_fits(value, hint) for value in values)
