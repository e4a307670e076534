"""What is said of a merge's size against rounding (trees.signal_to_rounding)."""

import math

# Below this many times the rounding error, a change is not what it was.
FAINT = 10.0


def signal_text(ratio: float, dtype: str) -> str:
    """Returns the line that a command prints of a ratio."""
    told = f"{ratio:,.3g}" if math.isfinite(ratio) else "nothing is rounded"
    return f"signal to rounding, {dtype}: {told}"


def faint_text(ratio: float, dtype: str, lost: str, change: str, instead: str) -> str:
    """Returns the warning that a cast to ``dtype`` rounds a change away.

    Args:
      ratio: signal to rounding in ``dtype``.
      lost, change: what suffers, such as "the merge", and the change that it is.
      instead: what to do.
    """
    return (
        f"in {dtype} much of {lost} is rounded away: {change} is only {ratio:.2g} "
        f"times the rounding error; {instead}"
    )
