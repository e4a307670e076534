"""Who wins, answer by answer; ties count half.

Answer s of one policy meets answer s of the other, not all S x S. Both were drawn with
the same random keys, so luck cancels in part; a scorer and a judge see the same pairs
of texts, so that their win rates may be compared; one definition holds for S = 1 and
S > 1; and a judge is asked S times per prompt instead of S^2. The interval over prompts
(``intervals.rate_interval``) takes care that samples of a prompt are alike.
"""

import numpy as np
from jaxtyping import Float


def wins(
    ours_BR: Float[np.ndarray, "B R"], theirs_BR: Float[np.ndarray, "B R"]
) -> Float[np.ndarray, "B R"]:
    """Returns 1 where our score is higher, 0.5 where they are equal, else 0."""
    return (ours_BR > theirs_BR) + 0.5 * (ours_BR == theirs_BR)


def judged_wins(
    first_BR: Float[np.ndarray, "B R"], second_BR: Float[np.ndarray, "B R"]
) -> Float[np.ndarray, "B R"]:
    """Returns our share, free of a preference for the first or the second place.

    Args:
      first_BR: a judge's share for the first text where ours came first, in [0, 1].
      second_BR: its share for the first text where ours came second.
    """
    return (first_BR + 1 - second_BR) / 2
