"""Rows of token ids as arrays of one shape, with masks that come from lengths."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from tpmm_jax.axes import CHOSEN, REJECTED
from tpmm_jax.data.records import PairRow
from tpmm_jax.errors import BadInput


def collate(
    rows: Sequence[PairRow], *, length: int, pad_id: int, whole: bool = False
) -> dict[str, np.ndarray]:
    """Pad pairs on the right to one length.

    Args:
      rows: B pairs, one or more.
      length: T in tokens; no prompt with its completion may be longer.
      pad_id: the id to fill with; no mask depends on it.
      whole: the rows are read as wholes, as by a reward model, and need no prompt.

    Returns:
      tokens_BNT int32; mask_BNT int32, 1 for a real token; completion_mask_BNT int32,
      1 for a completion's token, EOS included; index_B int32, 0 to B - 1; weight_B
      float32, 1 each.

    Raises:
      BadInput: no row, or a row longer than ``length``.
    """
    if not rows:
        raise BadInput("collate: 0 rows; wanted one or more")
    shape = (len(rows), 2, length)
    tokens_BNT = np.full(shape, pad_id, np.int32)
    mask_BNT = np.zeros(shape, np.int32)
    completion_mask_BNT = np.zeros(shape, np.int32)
    for b, row in enumerate(rows):
        start = len(row.prompt_ids)
        for n, ids in ((CHOSEN, row.chosen_ids), (REJECTED, row.rejected_ids)):
            end = start + len(ids)
            _check_row(row, b, start, end, length, whole=whole)
            tokens_BNT[b, n, :start] = row.prompt_ids
            tokens_BNT[b, n, start:end] = ids
            mask_BNT[b, n, :end] = 1
            completion_mask_BNT[b, n, start:end] = 1
    return {
        "tokens_BNT": tokens_BNT,
        "mask_BNT": mask_BNT,
        "completion_mask_BNT": completion_mask_BNT,
        "index_B": np.arange(len(rows), dtype=np.int32),
        "weight_B": np.ones(len(rows), np.float32),
    }


def _check_row(
    row: PairRow, number: int, start: int, end: int, length: int, *, whole: bool
) -> None:
    name = f"row {number}" + (f" ({row.origin})" if row.origin else "")
    if end > length:
        raise BadInput(
            f"{name}: {start} prompt and {end - start} completion tokens, more than "
            f"the length {length}; raise the length or lower the limits on both"
        )
    # The first completion token is predicted from the one before it.
    if (not start and not whole) or end == start:
        raise BadInput(f"{name}: the prompt and both completions need a token or more")


def pad_prompts(
    prompts: Sequence[Sequence[int]], *, length: int, pad_id: int
) -> tuple[Int32[np.ndarray, "B T"], Int32[np.ndarray, "B T"]]:
    """Pad prompts on the left to one length, so that all end in the last column.

    Args:
      prompts: token ids, one or more per prompt.
      length: T in tokens.
      pad_id: the id to fill with; the mask does not depend on it.

    Returns:
      tokens_BT int32 and mask_BT int32, 1 for a real token.

    Raises:
      BadInput: a prompt is empty or longer than ``length``.
    """
    tokens_BT = np.full((len(prompts), length), pad_id, np.int32)
    mask_BT = np.zeros((len(prompts), length), np.int32)
    for b, ids in enumerate(prompts):
        if not 0 < len(ids) <= length:
            raise BadInput(
                f"prompt {b}: {len(ids)} tokens; wanted 1 to {length}, the length"
            )
        tokens_BT[b, length - len(ids) :] = ids
        mask_BT[b, length - len(ids) :] = 1
    return tokens_BT, mask_BT
