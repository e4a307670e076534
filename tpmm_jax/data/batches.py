"""Rows of token ids as arrays of one shape, with masks that come from lengths."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Float32, Int32

from tpmm_jax.axes import CHOSEN, REJECTED
from tpmm_jax.data.records import PairRow
from tpmm_jax.errors import BadInput


class Batch(TypedDict):
    """The arrays of a batch of pairs; see ``collate``."""

    tokens_BNT: Int32[np.ndarray, "B N T"]
    mask_BNT: Int32[np.ndarray, "B N T"]
    completion_mask_BNT: Int32[np.ndarray, "B N T"]
    index_B: Int32[np.ndarray, " B"]
    weight_B: Float32[np.ndarray, " B"]


def collate(
    rows: Sequence[PairRow],
    *,
    length: int,
    pad_id: int,
    weights: Sequence[float] | None = None,
    index: Sequence[int] | None = None,
    size: int | None = None,
) -> dict[str, np.ndarray]:
    """Pad pairs on the right to one length, and the batch to one size.

    Rows added to reach ``size`` repeat the first row, its index too, with weight 0:
    they can be gathered, scattered and averaged by weight without harm.

    Args:
      rows: the pairs, one or more.
      length: T in tokens; no prompt with its completion may be longer.
      pad_id: the id to fill with; no mask depends on it.
      weights: the weight of each row; 1 by default.
      index: each row's number in its set; 0, 1, ... by default.
      size: B, the number of rows of the batch; by default as many as there are.

    Returns:
      tokens_BNT int32; mask_BNT int32, 1 for a real token; completion_mask_BNT int32,
      1 for a completion's token, EOS included; index_B int32; weight_B float32.

    Raises:
      BadInput: no row, a row longer than ``length``, or counts that do not agree.
    """
    size = len(rows) if size is None else size
    numbers = list(range(len(rows)) if index is None else index)
    weight_B = np.zeros(size, np.float32)
    if not rows or size < len(rows) or len(numbers) != len(rows):
        raise BadInput(
            f"collate: {len(rows)} rows with {len(numbers)} indices for a batch of "
            f"{size}; wanted 1 to {size} rows and one index each"
        )
    if weights is not None and len(weights) != len(rows):
        raise BadInput(f"collate: {len(weights)} weights for {len(rows)} rows")
    weight_B[: len(rows)] = 1.0 if weights is None else weights
    tokens_BNT = np.full((size, 2, length), pad_id, np.int32)
    mask_BNT = np.zeros((size, 2, length), np.int32)
    completion_mask_BNT = np.zeros((size, 2, length), np.int32)
    for b, row in enumerate(rows):
        start = len(row.prompt_ids)
        for n, ids in ((CHOSEN, row.chosen_ids), (REJECTED, row.rejected_ids)):
            end = start + len(ids)
            _check_row(row, numbers[b], start, end, length)
            tokens_BNT[b, n, :start] = row.prompt_ids
            tokens_BNT[b, n, start:end] = ids
            mask_BNT[b, n, :end] = 1
            completion_mask_BNT[b, n, start:end] = 1
    for array in (tokens_BNT, mask_BNT, completion_mask_BNT):
        array[len(rows) :] = array[0]
    numbers += numbers[:1] * (size - len(rows))
    return {
        "tokens_BNT": tokens_BNT,
        "mask_BNT": mask_BNT,
        "completion_mask_BNT": completion_mask_BNT,
        "index_B": np.asarray(numbers, np.int32),
        "weight_B": weight_B,
    }


def _check_row(row: PairRow, number: int, start: int, end: int, length: int) -> None:
    name = f"row {number}" + (f" ({row.origin})" if row.origin else "")
    if end > length:
        raise BadInput(
            f"{name}: {start} prompt and {end - start} completion tokens, more than "
            f"the length {length}; raise the length or lower the limits on both"
        )
    # The first completion token is predicted from the one before it.
    if not start or end == start:
        raise BadInput(f"{name}: the prompt and both completions need a token or more")


def pad_prompts(
    prompts: Sequence[Sequence[int]], *, length: int, pad_id: int
) -> tuple[Int32[np.ndarray, "B T"], Int32[np.ndarray, "B T"]]:
    """Pad prompts on the left to one length, so that all end in the last column.

    Args:
      prompts: token ids, one or more a prompt.
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
