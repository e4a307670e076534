"""Fusion weights learned on a preference file, and what they are worth.

They are found as a run's "learned" reference finds them (merging; our reconstruction):
the merge is scored as a policy against the anchor, the first model. Whole prompts are
held out of the learning, and all scores reported are of those.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.data.batches import collate
from tpmm_jax.data.prepare import group_by_prompt
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.table import best_lengths, pair_length, round_up, row_lengths
from tpmm_jax.errors import BadInput
from tpmm_jax.evaluation import accuracy_interval
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.compare import LENGTHS
from tpmm_jax.loop.held_out import CachedPairs
from tpmm_jax.loop.log_probs import batched_log_probs
from tpmm_jax.loop.safety import refuse_log_probs
from tpmm_jax.merging import (
    Deltas,
    HeldOut,
    MergeContext,
    ReferenceConfig,
    choose,
    one_hot,
)
from tpmm_jax.merging.scale import fitted_scale
from tpmm_jax.mesh import fill
from tpmm_jax.models import Decoder

MICRO_BATCH = 8
_SPLIT = 11


@dataclass(frozen=True)
class Score:
    """A model on the held-out pairs, as a policy against the anchor.

    Attributes:
      accuracy: share of pairs whose D is positive, ties half.
      low, high: its 95 % interval over prompts.
      loss: mean -log sigma(scale D), nats.
      scale: of D, fitted to the pairs that were learned on, or the given beta.
    """

    model: str
    accuracy: float
    low: float
    high: float
    loss: float
    scale: float


@dataclass(frozen=True)
class Learned:
    """The weights, and the scores of every model, the mean and the merge.

    Attributes:
      fit: what the rule records of how it found them, as in a run's reference.json;
        its held-out pairs are those learned on.
    """

    weights_GK: np.ndarray
    fit: dict[str, Any]
    scores: list[Score]
    counts: dict[str, int]


@dataclass(frozen=True)
class Split:
    """Pairs to learn on and pairs to report on, of different prompts."""

    learn: list[PairRow]
    report: list[PairRow]


def split_rows(rows: list[PairRow], share: float, seed: int) -> Split:
    """Holds a share of the prompts out, with all their pairs.

    Raises:
      BadInput: too few prompts for one on either side.
    """
    groups = group_by_prompt(rows)
    held = max(1, round(share * len(groups)))
    if len(groups) - held < 1:
        raise BadInput(
            f"the pairs have {len(groups)} different prompts; wanted enough to learn "
            f"on some and hold {share:g} of them out: give more pairs"
        )
    order = np.random.default_rng([seed, _SPLIT]).permutation(len(groups))
    report = [row for place in order[:held] for row in groups[place]]
    learning = [row for place in order[held:] for row in groups[place]]
    return Split(learning, report)


def learn_weights(
    deltas: Deltas,
    rows: Split,
    sets: Sequence[HeldOut],
    config: ReferenceConfig,
    names: Sequence[str],
    console: RunConsole,
) -> Learned:
    """Returns weights_GK learned on the pairs to learn on, scored on the others.

    Args:
      sets: both parts of ``rows``, from ``held_out_sets``.
      config: of the rule "learned".
      names: of the models, for the scores.
    """
    cached = _model_log_probs(deltas, rows, sets, names, console)
    known = [pairs.margins(length_normalized=False) for pairs in cached]
    groups, count = len(deltas.names), deltas.count
    with console.phase("learn", config.evaluations or 1, "steps") as bar:

        def on_step(progress: dict[str, Any], row: dict[str, float]) -> None:
            bar.advance(1, loss=f"{row['loss']:.4f}")

        context = MergeContext(
            config,
            count,
            deltas.names,
            known[0],
            deltas=lambda: deltas,
            held_out=sets[0],
            on_step=on_step,
        )
        weights_GK = choose(context)
        if not config.evaluations:
            bar.advance(1)
    prompts = [tuple(row.prompt_ids) for row in rows.report]
    free = config.objective == "calibrated"
    scores = []
    for k, name in enumerate(names):
        c = fitted_scale(known[0].of(k)) if free else config.beta
        scores.append(score(name, known[1].of(k), prompts, c))
    merges = {"uniform": np.full((groups, count), 1 / count), "learned": weights_GK}
    with console.phase("score", len(merges), "merges") as bar:
        for name, tried_GK in merges.items():
            params = deltas.merge(tried_GK)
            c = fitted_scale(sets[0].margins(params)) if free else config.beta
            scores.append(score(name, sets[1].margins(params), prompts, c))
            del params
            bar.advance(1)
    counts = {
        "learn_pairs": len(rows.learn),
        "held_out_pairs": len(rows.report),
        "held_out_prompts": len(set(prompts)),
    }
    return Learned(weights_GK, context.report, scores, counts)


def _model_log_probs(
    deltas: Deltas,
    rows: Split,
    sets: Sequence[HeldOut],
    names: Sequence[str],
    console: RunConsole,
) -> list[CachedPairs]:
    """Returns both sets' log-probs under every model.

    Raises:
      NotFinite: one gives an answer no finite log-prob; names the pairs.
    """
    cached = [
        CachedPairs(some, {0: held_out.table["reference_BN"]})
        for some, held_out in zip((rows.learn, rows.report), sets, strict=True)
    ]
    total = (deltas.count - 1) * sum(len(pairs.rows) for pairs in cached)
    with console.phase("log-probs", total, "pairs") as bar:
        for k in range(1, deltas.count):
            params = deltas.merge(one_hot(len(deltas.names), deltas.count, k))
            for held_out, pairs in zip(sets, cached, strict=True):
                pairs.logps[k] = log_probs(held_out, params, bar.advance)
            del params
    for pairs in cached:
        for k, logps_PN in pairs.logps.items():
            refuse_log_probs(logps_PN, pairs.rows, names[k], "leave the pairs out")
    return cached


def held_out_sets(
    deltas: Deltas,
    decoder: Decoder,
    rows: Split,
    config: ReferenceConfig,
    *,
    pad: int,
    seed: int,
    console: RunConsole,
) -> list[HeldOut]:
    """Returns the pairs to learn on and to report on, scored by the anchor.

    Args:
      pad: the id to fill with.
    """
    limit = decoder.config.max_positions
    longest = pair_length([*rows.learn, *rows.report])
    if longest > limit:
        raise BadInput(
            f"prompts with completions reach {longest} tokens, the model has {limit} "
            "positions; lower --max-prompt-length or --max-completion-length"
        )
    length = round_up(longest, limit)
    anchor = deltas.merge(one_hot(len(deltas.names), deltas.count, 0))
    sets = []
    with console.phase(
        "anchor", len(rows.learn) + len(rows.report), "pairs"
    ) as anchor_bar:
        for some in (rows.learn, rows.report):
            table = collate(some, length=length, pad_id=pad)
            lengths = best_lengths(row_lengths(table), length, LENGTHS)
            micro = fill(decoder.mesh, min(MICRO_BATCH, len(some)), sides=2)
            held_out = HeldOut(decoder, config, table, micro, seed, lengths)
            table["reference_BN"] = log_probs(held_out, anchor, anchor_bar.advance)
            sets.append(held_out)
    return sets


def log_probs(
    held_out: HeldOut, params: Params, advance: Callable[[int], None]
) -> np.ndarray:
    """Returns log p of every answer under a model, float32 [P, N] nats."""
    return batched_log_probs(
        held_out.decoder,
        params,
        held_out.table,
        size=held_out.micro,
        lengths=held_out.lengths,
        advance=advance,
    )


def score(
    model: str, margins: np.ndarray, prompts: list[tuple[int, ...]], scale: float
) -> Score:
    """Returns a model's score; pairs of one prompt are one cluster."""
    found = accuracy_interval(margins, prompts)
    loss = float(np.mean(np.logaddexp(0, -scale * margins)))
    return Score(model, *found, loss=loss, scale=scale)
