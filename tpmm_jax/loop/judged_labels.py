"""What a judge that labels could not say: replies unread, verdicts of the place."""

import itertools
from collections.abc import Mapping, Sequence

from tpmm_jax.data.records import Rollout
from tpmm_jax.loop.judging import MAX_UNREAD

UNREAD, DISAGREED = "labels/unread", "labels/disagreed"


def label_faults(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Returns what of an iteration's answers speaks against the judge that labels.

    Returns:
      labels/disagreed, the share of two different answers of one prompt of which the
      judge prefers the same place in both orders; labels/unread, the share of its
      replies that cannot be read. {} where no judge labels.
    """
    judged = [row for row in rollouts if row.disagreed is not None]
    if not judged:
        return {}
    met = sum(
        one != other
        for row in judged
        for one, other in itertools.combinations(row.responses, 2)
    )
    disagreed = sum(row.disagreed or 0 for row in judged)
    unread = sum(len(row.unread or ()) for row in judged)
    # Each two were asked about in both orders.
    return {DISAGREED: disagreed / max(met, 1), UNREAD: unread / max(2 * met, 1)}


def label_warning(
    faults: Mapping[str, float], rollouts: Sequence[Rollout], what: str
) -> str:
    """Returns a warning that much of what a judge said labels nothing, or "".

    Args:
      faults: of ``label_faults``.
      what: whose answers they are, for the message.
    """
    if faults.get(UNREAD, 0) <= MAX_UNREAD:
        return ""
    example = next(words for row in rollouts for words in row.unread or ())
    return (
        f"{what}: {100 * faults[UNREAD]:.0f} % of the judge's replies cannot be read "
        f"and count as ties, such as {example[:60]!r} (unread in rollouts.jsonl). "
        "Change judge.template, judge.max_new_tokens or what is read as a verdict "
        "(judge.first, judge.second, judge.tie), or take another model, in a new "
        "--workdir"
    )
