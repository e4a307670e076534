"""Answers that max_new_tokens cut: what is measured of them is half a text's."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

# A larger share of answers that were cut is warned of.
MAX_CUT = 0.2


def cut_share(ids: Iterable[Sequence[int]], eos_ids: Collection[int]) -> float:
    """Returns the share of answers that have no end of their own.

    >>> cut_share([[5, 7, 1], [5, 7, 6], [1]], eos_ids={1})
    0.3333333333333333

    Args:
      ids: of each answer, EOS included where it came to an end.
      eos_ids: ids that end an answer.
    """
    return float(np.mean([not row or row[-1] not in eos_ids for row in ids]))


def cut_warning(shares: Mapping[str, float], option: str, limit: int | None) -> str:
    """Returns a warning of answers of which many were cut, "" where few were.

    Args:
      shares: by whose answers they are, such as "iteration 2".
      option: the field or option that sets the limit.
      limit: max_new_tokens; None: not known.
    """
    large = [f"{what}: {100 * x:.0f} %" for what, x in shares.items() if x > MAX_CUT]
    if not large:
        return ""
    at = "" if limit is None else f" at {limit} tokens"
    return (
        f"answers cut{at}: {'; '.join(large)}. Above {100 * MAX_CUT:.0f} % scores and "
        f"lengths are those of unfinished texts: raise {option}"
    )
