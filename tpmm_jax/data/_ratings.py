"""Ratings that stand beside chosen and rejected, held against the labels."""

import math
from collections.abc import Mapping
from typing import Any

_NOUNS = ("score", "rating", "reward", "avg_rating", "average_rating")
RATING_PAIRS = (
    *((f"{noun}_chosen", f"{noun}_rejected") for noun in _NOUNS),
    *((f"chosen_{noun}", f"rejected_{noun}") for noun in _NOUNS),
    *((f"chosen-{n}", f"rejected-{n}") for n in ("score", "rating", "avg-rating")),
)
MARGIN = "margin"
RATING_COLUMNS = (*(name for both in RATING_PAIRS for name in both), MARGIN)


def compare_ratings(data: Mapping[str, Any]) -> tuple[str, str]:
    """What a row's ratings say against its label.

    Returns:
      "scored_otherwise" where one prefers rejected, with a text that names it; "tied"
      where none does and one has no preference; else "".
    """
    tied = ""
    for names in RATING_PAIRS:
        chosen, rejected = (as_number(data.get(name)) for name in names)
        if chosen is None or rejected is None:
            continue
        if chosen < rejected:
            text = f"{names[1]} {rejected:g} is above {names[0]} {chosen:g}"
            return "scored_otherwise", text
        tied = "tied" if chosen == rejected else tied
    margin = as_number(data.get(MARGIN))
    if margin is not None and margin < 0:
        return "scored_otherwise", f"{MARGIN} {margin:g} is below 0"
    return "tied" if margin == 0 else tied, ""


def as_number(value: Any) -> float | None:
    """A finite number, also where a CSV cell holds it as text; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
