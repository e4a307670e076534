"""By how much chosen leads rejected, where a row says so."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from tpmm_jax.data._ratings import MARGIN, RATING_PAIRS, as_number
from tpmm_jax.data._strict_object import json_type
from tpmm_jax.data.problems import Defect, Problems, place_of

WANTED = (
    "a column margin (data.fields names another one), ratings such as score_chosen "
    "and score_rejected, or several answers with scores"
)


class Margin(NamedTuple):
    """What a row says of its margin.

    Attributes:
      value: None where it says nothing, or nothing that can be read.
      source: the columns that it was read from; "" where there are none.
      fault: why it cannot be read.
      field: the column at fault.
    """

    value: float | None = None
    source: str = ""
    fault: str = ""
    field: str | None = None


def find_margin(data: Mapping[str, Any], column: str | None = None) -> Margin:
    """The margin column of a row, or else the difference of its ratings.

    Args:
      column: the margin's, where it was named; then nothing else is looked at.
    """
    name = column or MARGIN
    if column or not _is_blank(data.get(name)):
        value = data.get(name)
        if _is_blank(value):
            return Margin()
        number = as_number(value)
        if number is None:
            return Margin(None, name, _no_number(name, value), name)
        return Margin(number, name)
    for names in RATING_PAIRS:
        found = [data.get(name) for name in names]
        blank = [_is_blank(value) for value in found]
        if all(blank):
            continue
        source = " and ".join(names)
        if any(blank):
            here, missing = (1, 0) if blank[0] else (0, 1)
            text = f"field {names[missing]!r} is missing beside {names[here]!r}"
            return Margin(None, source, text, names[missing])
        numbers = [as_number(value) for value in found]
        for name, value, number in zip(names, found, numbers):
            if number is None:
                return Margin(None, source, _no_number(name, value), name)
        return Margin(numbers[0] - numbers[1], source)  # type: ignore[operator]
    return Margin()


def scored_margin(
    difference: float | None, columns: Collection[str], names: Mapping[str, str]
) -> Margin | None:
    """The margin of two answers of a row; None of a row that is a pair itself."""
    if not columns:
        return None
    if column := names.get("margin"):
        text = (
            f"field {column!r} is named as the margin, but this row has several "
            "answers, whose margins are the differences of their scores"
        )
        return Margin(None, column, text, column)
    source = "" if difference is None else f"differences of {' and '.join(columns)}"
    return Margin(difference, source)


def note_margins(
    found: Sequence[tuple[str, Margin]], problems: Problems, *, used: bool
) -> None:
    """Note margins that cannot be read, are missing, or come from other columns.

    Args:
      found: each pair's origin, and what its row says.
      used: whether margins are read; otherwise they are no defects, but kept apart in
        ``problems.margins``.
    """
    noted = [
        Defect(place_of(origin), one.field, one.fault)
        for origin, one in found
        if one.fault
    ]
    good = [(origin, one) for origin, one in found if not one.fault]
    tally = Counter(one.source for _, one in good if one.source)
    if tally:
        usual, number = tally.most_common(1)[0]
        most = f"{number:,} of {len(found):,} pairs"
        for origin, one in good:
            if not one.source:
                text = f"no margin, while {most} have one ({usual})"
                noted.append(Defect(place_of(origin), None, text))
            elif one.source != usual:
                text = (
                    f"the margin comes from {one.source}, that of {most} from {usual}; "
                    "one file has one source of margins"
                )
                noted.append(Defect(place_of(origin), None, text))
    elif used and found and not noted:
        text = f"no row has a margin; wanted {WANTED}"
        noted = [Defect(place_of(problems.source), None, text, fatal=True)]
    (problems.found if used else problems.margins).extend(noted)


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _no_number(name: str, value: Any) -> str:
    said = repr(value) if isinstance(value, str | float) else json_type(value)
    return f"field {name!r} is {said[:60]}; wanted a finite number"
