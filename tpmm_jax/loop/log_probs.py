"""Log-probabilities of answers and of pairs under one model, batch by batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.data.batches import collate
from tpmm_jax.data.records import PairRow, Rollout
from tpmm_jax.data.table import Table, row_lengths, same_length, take
from tpmm_jax.loop.answers import PolicyRunner
from tpmm_jax.loop.prompts import MAIN
from tpmm_jax.loop.voice import Voice
from tpmm_jax.mesh import fetch, fill, put_batch
from tpmm_jax.models import Decoder
from tpmm_jax.steps import pair_log_probs_step, token_log_probs_step

Sequences = list[tuple[list[int], list[int]]]


class ModelLogProbs(NamedTuple):
    """What one model gives, nats: of answers [B, R] by name, of pairs [P, N]."""

    answers: dict[str, np.ndarray]
    pairs: np.ndarray | None


def model_log_probs(
    runner: PolicyRunner,
    voice: Voice,
    params: Callable[[], Params],
    answers: Mapping[str, Sequence[Rollout]],
    pairs: Sequence[PairRow],
    title: str,
) -> ModelLogProbs:
    """Returns a model's log-probs of answers and of pairs, if there are any."""
    found, pairs_PN = {}, None
    for name, some in answers.items():
        where = title if name == MAIN else f"{title} on {name}"
        found[name] = answer_log_probs(runner, voice, params(), some, where)
    if pairs:
        sequences, place_PN = unique_sequences(pairs)
        where = f"{title} on held-out pairs"
        pairs_PN = sequence_log_probs(runner, voice, params(), sequences, where)[
            place_PN
        ]
    return ModelLogProbs(found, pairs_PN)


def unique_sequences(rows: Sequence[PairRow]) -> tuple[Sequences, np.ndarray]:
    """Returns the different (prompt, answer) ids, and each pair's places, [P, N]."""
    places: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    place_PN = np.zeros((len(rows), 2), np.int64)
    for p, row in enumerate(rows):
        for n, ids in enumerate((row.chosen_ids, row.rejected_ids)):
            key = tuple(row.prompt_ids), tuple(ids)
            place_PN[p, n] = places.setdefault(key, len(places))
    return [(list(prompt), list(ids)) for prompt, ids in places], place_PN


def pair_table(runner: PolicyRunner, rows: Sequence[PairRow]) -> Table:
    """Returns the arrays of pairs, padded to the runner's length."""
    return collate(rows, length=runner.pair_lengths[-1], pad_id=runner.codec.pad_id)


def answer_log_probs(
    runner: PolicyRunner,
    voice: Voice,
    params: Params,
    answers: Sequence[Rollout],
    title: str,
) -> np.ndarray:
    """Returns log p(answer | prompt), nats, of every sample of every prompt, [B, R]."""
    both = [(row.prompt_ids, ids) for row in answers for ids in row.response_ids]
    logp_S = sequence_log_probs(runner, voice, params, both, title)
    return logp_S.reshape(len(answers), -1)


def sequence_log_probs(
    runner: PolicyRunner,
    voice: Voice,
    params: Params,
    sequences: Sequence[tuple[list[int], list[int]]],
    title: str,
) -> np.ndarray:
    """Returns log p(answer | prompt), nats, of (prompt, answer) ids, float64 [S]."""
    size = fill(runner.decoder.mesh, 2 * runner.micro_batch)
    length_S = np.asarray([len(prompt) + len(ids) for prompt, ids in sequences], int)
    logp_S = np.zeros(len(sequences))
    with voice.phase(title, len(sequences), "answers") as advance:
        for places, length in same_length(length_S, runner.pair_lengths, size):
            some = [sequences[place] for place in places]
            arrays = _answer_arrays(some, size, length, runner.codec.pad_id)
            tokens_BT, mask_BT, of_answer_BT = arrays
            logp_BT = token_log_probs_step(
                runner.decoder,
                params,
                *put_batch((tokens_BT, mask_BT), runner.decoder.mesh),
            )
            logp_B = (fetch(logp_BT).astype(np.float64) * of_answer_BT[:, 1:]).sum(
                axis=1
            )
            logp_S[places] = logp_B[: len(some)]
            advance(len(some))
    return logp_S


def _answer_arrays(
    some: Sequence[tuple[list[int], list[int]]], size: int, length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns tokens, mask and the answers' mask, [B, T], of (prompt, answer) ids."""
    tokens_BT = np.full((size, length), pad_id, np.int32)
    mask_BT, of_answer_BT = np.zeros_like(tokens_BT), np.zeros_like(tokens_BT)
    for b, (prompt, ids) in enumerate(some):
        end = len(prompt) + len(ids)
        tokens_BT[b, :end] = [*prompt, *ids]
        mask_BT[b, :end] = 1
        of_answer_BT[b, len(prompt) : end] = 1
    return tokens_BT, mask_BT, of_answer_BT


def table_log_probs(
    runner: PolicyRunner,
    voice: Voice,
    params: Params,
    table: Table,
    title: str,
    ld_alpha: float | None = None,
) -> np.ndarray:
    """Returns ``batched_log_probs`` of a table, and shows how far it is."""
    with voice.phase(title, len(table["weight_B"]), "pairs") as advance:
        return batched_log_probs(
            runner.decoder,
            params,
            table,
            size=runner.micro_batch,
            lengths=runner.pair_lengths,
            ld_alpha=ld_alpha,
            advance=advance,
        )


def batched_log_probs(
    decoder: Decoder,
    params: Params,
    table: Table,
    *,
    size: int,
    lengths: Sequence[int],
    ld_alpha: float | None = None,
    advance: Callable[[int], None],
) -> np.ndarray:
    """Returns log p(completion | prompt) of every pair, float32 [P, N] nats.

    Args:
      size: pairs at once.
      lengths: see ``PolicyRunner.pair_lengths``.
      ld_alpha: weight of tokens beyond the shorter completion's length; None: 1.
      advance: called with the number of pairs that were done.
    """
    filled = fill(decoder.mesh, size, sides=2)
    logps_PN = np.zeros((len(table["weight_B"]), 2), np.float32)
    for places, length in same_length(row_lengths(table), lengths, size):
        batch = put_batch(take(table, places, filled, [length]), decoder.mesh)
        logps_BN = pair_log_probs_step(decoder, params, batch, ld_alpha=ld_alpha)
        logps_PN[places] = fetch(logps_BN)[: len(places)]
        advance(len(places))
    return logps_PN
