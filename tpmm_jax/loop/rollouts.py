"""Sampling, scoring and pairing; or, offline, the iteration's chunk of a pair set."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tpmm_jax.data.records import LabelledPair, PairRow, Rollout
from tpmm_jax.errors import BadInput
from tpmm_jax.evaluation import MAX_CUT, cut_share, cut_warning
from tpmm_jax.log.pair_counts import pair_counts
from tpmm_jax.loop.answers import sample_answers
from tpmm_jax.loop.judged_labels import label_faults, label_warning
from tpmm_jax.loop.margins import rated_margin, use_margins
from tpmm_jax.loop.offline_pairs import as_labelled, rate_pairs
from tpmm_jax.loop.run import ROLLOUT, Disk, Plan
from tpmm_jax.loop.voice import Voice
from tpmm_jax.rewards import COLUMN, PairPlaces, make_pairs
from tpmm_jax.store.digests import is_finished
from tpmm_jax.store.records import read_records, write_records

# Every table has the share, so that a start warns of it once.
CUT_OPTION = "rollout.max_new_tokens, in a new --workdir (said once a start)"
# Where a smaller share of the prompts gives a pair, that is warned of.
FEW_PROMPTS = 0.5


@dataclass(frozen=True)
class IterationPairs:
    """An iteration's pairs: those that train, and those that are held out."""

    train: list[PairRow]
    held_out: list[PairRow]

    def digest(self) -> str:
        """Returns a SHA-256 of the training pairs' token ids."""
        ids = [[r.prompt_ids, r.chosen_ids, r.rejected_ids] for r in self.train]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def gather_pairs(
    plan: Plan, disk: Disk, voice: Voice, iteration: int
) -> IterationPairs:
    """Returns the iteration's pairs; makes and writes pairs.jsonl if it is missing."""
    path = disk.folder(iteration) / "pairs.jsonl"
    if not is_finished(path) or "rollouts.jsonl" in disk.lost(iteration):
        if plan.pair_chunks is not None:
            labelled = _flip_chunk(plan, disk, voice, iteration)
        else:
            rollouts = roll_out(plan, disk, voice, iteration)
            labelled = _label_rollouts(plan, disk, voice, iteration, rollouts)
        write_records(path, labelled)
    pairs = read_pairs(disk, iteration)
    if not pairs.train:
        if plan.config.pairing.margins == "drop":
            raise BadInput(
                f"iteration {iteration} has no training pair left: pairing.margins="
                f"drop leaves out those of a negative margin (see {path.parent}); "
                "use relabel, or another madpo.margins, in a new --workdir"
            )
        raise BadInput(
            f"iteration {iteration} has no training pair: every prompt's responses "
            f"have equal rewards (see {path.parent}); use a finer scorer, more "
            "samples or a higher temperature, in a new --workdir"
        )
    return pairs


def read_pairs(disk: Disk, iteration: int) -> IterationPairs:
    """Returns what pairs.jsonl of a finished labelling holds."""
    path = disk.folder(iteration) / "pairs.jsonl"
    train: list[PairRow] = []
    held_out: list[PairRow] = []
    for number, pair in enumerate(read_records(path, LabelledPair), start=1):
        ids = pair.prompt_ids, pair.chosen_ids, pair.rejected_ids
        row = PairRow(*ids, origin=f"{path}:{number}", margin=pair.margin)
        (held_out if pair.held_out else train).append(row)
    return IterationPairs(train, held_out)


def roll_out(plan: Plan, disk: Disk, voice: Voice, iteration: int) -> list[Rollout]:
    """Samples from theta_{t-1} on the iteration's prompts, and scores."""
    assert plan.schedule is not None
    started, rating = time.monotonic(), list[float]()
    path = disk.folder(iteration) / "rollouts.jsonl"
    if not path.exists():
        disk.rewind("rollout", iteration)
    answers = sample_answers(
        plan.runner,
        voice,
        path,
        plan.schedule.iteration(iteration),
        # Only what labels: further scorers and judges see the evaluation alone.
        plan.raters.labelling(),
        params=lambda: disk.policy(iteration - 1),
        key=plan.key(iteration, ROLLOUT),
        num_samples=plan.config.rollout.samples_per_prompt,
        title=f"iteration {iteration}: sample and score",
        rated=rating.append,
    )
    whole, rated = time.monotonic() - started, sum(rating)
    if rating:
        disk.log_seconds("rollout", iteration, whole - rated)
        disk.log_seconds("score", iteration, rated)
    return answers


def _label_rollouts(
    plan: Plan,
    disk: Disk,
    voice: Voice,
    iteration: int,
    rollouts: Sequence[Rollout],
) -> list[LabelledPair]:
    rewards_BR = np.asarray([row.rewards for row in rollouts])
    places, tied = make_pairs(
        rewards_BR,
        [row.held_out for row in rollouts],
        plan.config.pairing.flip_probability,
        seed=[plan.config.seed, iteration],
        labels=plan.config.pairing.labels,
    )
    labelled = [(place, _labelled(rollouts[place.prompt], place)) for place in places]
    kept = [(place, p) for place, p in labelled if p.chosen_ids != p.rejected_ids]
    pairs = [pair for _, pair in kept]
    more: dict[str, float] = {}
    if plan.raters.margins is not None:
        pairs, more = use_margins(plan, disk, voice, iteration, pairs)
    ids = [ids for row in rollouts for ids in row.response_ids]
    cut, faults = cut_share(ids, plan.runner.codec.eos_ids), label_faults(rollouts)
    _log_pairs(
        disk,
        voice,
        iteration,
        pairs,
        {
            "pairs/tied_prompts": tied,
            "pairs/dropped": len(places) - len(kept),
            "rollout/cut": cut,
            "rollout/reward_mean": float(rewards_BR.mean()),
            "rollout/reward_std": float(rewards_BR.std()),
            "rollout/length_mean": float(np.mean([len(row) for row in ids])),
            **faults,
            **more,
        },
    )
    what = f"iteration {iteration}"
    prompts = len({place.prompt for place, _ in kept})
    many_cut = cut > MAX_CUT and voice.is_new("cut answers of iterations")
    shares, limit = {what: cut} if many_cut else {}, plan.config.rollout.max_new_tokens
    for text in (
        few_pairs_warning(prompts, len(rollouts), what),
        cut_warning(shares, CUT_OPTION, limit),
        label_warning(faults, rollouts, what),
    ):
        if text:
            voice.console.warn(text)
    return pairs


def _labelled(row: Rollout, place: PairPlaces) -> LabelledPair:
    assert row.rewards is not None
    return LabelledPair(
        prompt=row.prompt,
        chosen=row.responses[place.chosen],
        rejected=row.responses[place.rejected],
        chosen_reward=row.rewards[place.chosen],
        rejected_reward=row.rewards[place.rejected],
        flipped=place.flipped,
        held_out=place.held_out,
        margin=rated_margin(row, place.chosen, place.rejected),
        prompt_ids=row.prompt_ids,
        chosen_ids=row.response_ids[place.chosen],
        rejected_ids=row.response_ids[place.rejected],
    )


def few_pairs_warning(gave: int, prompts: int, what: str) -> str:
    """Returns a warning that few prompts gave a pair, "" where enough did.

    Args:
      gave, prompts: how many gave a pair, of how many.
    """
    if gave >= FEW_PROMPTS * prompts:
        return ""
    return (
        f"{what}: only {gave:,} of {prompts:,} prompts gave a pair; the answers to the "
        "others have equal rewards, so they teach nothing. Use a finer scorer, more "
        "rollout.samples_per_prompt or a higher rollout.temperature, in a new --workdir"
    )


def _flip_chunk(
    plan: Plan, disk: Disk, voice: Voice, iteration: int
) -> list[LabelledPair]:
    """Returns the iteration's offline pairs, some of them flipped on purpose."""
    assert plan.pair_chunks is not None
    chunk, codec = plan.pair_chunks[iteration - 1], plan.runner.codec
    probability = plan.config.pairing.flip_probability
    flips = np.random.default_rng([plan.config.seed, iteration, 1]).random(len(chunk))
    pairs = []
    for (held_out, row), u in zip(chunk, flips):
        flipped = bool(u < probability)
        pair = as_labelled(codec, row, held_out=held_out, flipped=flipped)
        pairs.append(replace(pair, margin=_file_margin(plan, row, flipped)))
    more: dict[str, float] = {}
    if plan.config.madpo.margins is not None:
        if (source := plan.raters.margins) is not None:
            size = plan.config.rollout.batch_size
            rows = [row for _, row in chunk]
            with voice.phase("margins of the pairs", len(pairs), "pairs") as advance:
                margins = rate_pairs(source, codec, rows, pairs, size, advance)
            pairs = [replace(pair, margin=h) for pair, h in zip(pairs, margins)]
        pairs, more = use_margins(plan, disk, voice, iteration, pairs)
    _log_pairs(disk, voice, iteration, pairs, more)
    return pairs


def _file_margin(plan: Plan, row: PairRow, flipped: bool) -> float | None:
    """Returns the margin that the pair's file gives, if the run takes it from there."""
    if plan.config.madpo.margins != COLUMN or row.margin is None:
        return None
    return -row.margin if flipped else row.margin


def _log_pairs(
    disk: Disk,
    voice: Voice,
    iteration: int,
    pairs: Sequence[LabelledPair],
    more: dict[str, float],
) -> None:
    values = {
        "pairs/train": sum(not pair.held_out for pair in pairs),
        "pairs/held_out": sum(pair.held_out for pair in pairs),
        "pairs/flipped": sum(pair.flipped for pair in pairs),
        **more,
    }
    disk.rewind("pairs", iteration)
    disk.log.log("pairs", iteration=iteration, step=None, values=values)
    voice.console.note(f"iteration {iteration}: pairs: {pair_counts(values)}")
