"""The pairs of a file as an iteration's, and the margins that a scorer gives them."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.messages import Written, as_messages, as_text
from tpmm_jax.data.pairs import PreferencePair
from tpmm_jax.data.records import LabelledPair, PairRow
from tpmm_jax.data.table import pair_length
from tpmm_jax.errors import BadInput
from tpmm_jax.rewards import MARGINS, Known, NamedScorer


def as_labelled(
    codec: TextCodec, row: PairRow, *, held_out: bool, flipped: bool
) -> LabelledPair:
    """Returns a file's pair as a line of pairs.jsonl, without a margin.

    Args:
      flipped: chosen and rejected change places.
    """
    chosen, rejected = row.chosen_ids, row.rejected_ids
    if flipped:
        chosen, rejected = rejected, chosen
    text = codec.completion_texts(row.prompt_ids, [chosen, rejected])
    return LabelledPair(
        prompt=codec.tokenizer.decode(row.prompt_ids),
        chosen=text[0],
        rejected=text[1],
        origin=row.origin,
        flipped=flipped,
        held_out=held_out,
        prompt_ids=row.prompt_ids,
        chosen_ids=chosen,
        rejected_ids=rejected,
    )


def rate_pairs(
    source: NamedScorer,
    codec: TextCodec,
    rows: Iterable[PairRow],
    pairs: Sequence[LabelledPair],
    size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Returns the margins that a scorer gives to pairs, ``size`` at once.

    It is asked as about sampled answers: prompts as they are in the file, and which
    answers came to their end.

    Args:
      codec: of the policy.
      rows: those that the pairs are of, perhaps with others.
      advance: called with the number of pairs that were done.
    """
    # The pairs of one line have one prompt.
    written = {row.origin: row.pair for row in rows}
    found: list[float] = []
    for at in range(0, len(pairs), size):
        some = pairs[at : at + size]
        prompts = [_asked(codec, written[pair.origin or ""]) for pair in some]
        sides = [(pair.chosen_ids, pair.rejected_ids) for pair in some]
        ended = [[codec.has_ended(ids) for ids in both] for both in sides]
        texts = [[pair.chosen, pair.rejected] for pair in some]
        tokens = [[len(ids) for ids in both] for both in sides]
        asked = [as_messages(x, "user") if codec.chat else x for x in prompts]
        known = Known(asked, ended, tokens=tokens)
        rewards_BN = source(list(map(as_text, prompts)), texts, known)
        found += (rewards_BN[:, 0] - rewards_BN[:, 1]).tolist()
        advance(len(some))
    return found


def probe_pairs(
    source: NamedScorer, codec: TextCodec, rows: Sequence[PairRow], size: int
) -> np.ndarray:
    """Returns the margins of the ``size`` longest pairs, before anything expensive.

    Raises:
      BadInput: the scorer fails, or is a model that cannot read these pairs.
    """
    several = [row for row in rows if _has_turns(row)]
    if several and source.digest is not None:
        raise BadInput(
            f"{MARGINS} = {source.name} rates single answers, and {len(several):,} "
            f"pairs hold several turns, the first {several[0].origin}; leave these "
            "out, or give a function or a column of margins"
        )
    longest = sorted(rows, key=lambda row: -pair_length([row]))[:size]
    pairs = [as_labelled(codec, x, held_out=False, flipped=False) for x in longest]
    return np.asarray(rate_pairs(source, codec, longest, pairs, size))


def _asked(codec: TextCodec, pair: PreferencePair | None) -> Written:
    """Returns a pair's prompt as it is in the file."""
    assert pair is not None
    if codec.chat:
        return pair.prompt
    return as_text(pair.prompt) + pair.separator


def _has_turns(row: PairRow) -> bool:
    sides = () if row.pair is None else (row.pair.chosen, row.pair.rejected)
    return any(len(as_messages(side, "assistant")) > 1 for side in sides)
