"""Sampling, scoring and pairing; or, offline, the iteration's chunk of a pair set."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpmm_jax.data.records import LabelledPair, PairRow, Rollout
from tpmm_jax.errors import BadInput
from tpmm_jax.loop.answers import sample_answers
from tpmm_jax.loop.run import ROLLOUT, Disk, Plan
from tpmm_jax.loop.voice import Voice
from tpmm_jax.rewards import Raters, make_pairs
from tpmm_jax.store.records import read_records, write_records


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
    if not path.exists():
        if plan.pair_chunks is not None:
            labelled = _flip_chunk(plan, disk, iteration)
        else:
            labelled = _label_rollouts(
                plan, disk, iteration, roll_out(plan, disk, voice, iteration)
            )
        write_records(path, labelled)
    pairs = read_pairs(disk, iteration)
    if not pairs.train:
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
        row = PairRow(*ids, origin=f"{path}:{number}")
        (held_out if pair.held_out else train).append(row)
    return IterationPairs(train, held_out)


def roll_out(plan: Plan, disk: Disk, voice: Voice, iteration: int) -> list[Rollout]:
    """Samples from theta_{t-1} on the iteration's prompts, and scores."""
    assert plan.schedule is not None
    return sample_answers(
        plan.runner,
        voice,
        disk.folder(iteration) / "rollouts.jsonl",
        plan.schedule.iteration(iteration),
        # Only what labels: further scorers and judges see the evaluation alone.
        Raters(plan.raters.scorer),
        params=lambda: disk.policy(iteration - 1),
        key=plan.key(iteration, ROLLOUT),
        num_samples=plan.config.rollout.samples_per_prompt,
        title=f"iteration {iteration}: sample and score",
    )


def _label_rollouts(
    plan: Plan, disk: Disk, iteration: int, rollouts: Sequence[Rollout]
) -> list[LabelledPair]:
    rewards_BR = np.asarray([row.rewards for row in rollouts])
    places, tied = make_pairs(
        rewards_BR,
        [row.held_out for row in rollouts],
        plan.config.pairing.flip_probability,
        seed=[plan.config.seed, iteration],
    )
    pairs = []
    for place in places:
        row, chosen, rejected = rollouts[place.prompt], place.chosen, place.rejected
        if row.response_ids[chosen] == row.response_ids[rejected]:
            continue
        assert row.rewards is not None
        pairs.append(
            LabelledPair(
                prompt=row.prompt,
                chosen=row.responses[chosen],
                rejected=row.responses[rejected],
                chosen_reward=row.rewards[chosen],
                rejected_reward=row.rewards[rejected],
                flipped=place.flipped,
                held_out=place.held_out,
                prompt_ids=row.prompt_ids,
                chosen_ids=row.response_ids[chosen],
                rejected_ids=row.response_ids[rejected],
            )
        )
    lengths = [len(ids) for row in rollouts for ids in row.response_ids]
    _log_pairs(
        disk,
        iteration,
        pairs,
        {
            "pairs/tied_prompts": tied,
            "rollout/reward_mean": float(rewards_BR.mean()),
            "rollout/reward_std": float(rewards_BR.std()),
            "rollout/length_mean": float(np.mean(lengths)),
        },
    )
    return pairs


def _flip_chunk(plan: Plan, disk: Disk, iteration: int) -> list[LabelledPair]:
    """Returns the iteration's offline pairs, some of them flipped on purpose."""
    assert plan.pair_chunks is not None
    chunk, codec = plan.pair_chunks[iteration - 1], plan.runner.codec
    probability = plan.config.pairing.flip_probability
    flips = np.random.default_rng([plan.config.seed, iteration, 1]).random(len(chunk))
    pairs = []
    for (held_out, row), u in zip(chunk, flips):
        flipped = bool(u < probability)
        chosen, rejected = row.chosen_ids, row.rejected_ids
        if flipped:
            chosen, rejected = rejected, chosen
        text = codec.completion_texts(row.prompt_ids, [chosen, rejected])
        pairs.append(
            LabelledPair(
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
        )
    _log_pairs(disk, iteration, pairs, {})
    return pairs


def _log_pairs(
    disk: Disk, iteration: int, pairs: Sequence[LabelledPair], more: dict[str, float]
) -> None:
    values = {
        "pairs/train": sum(not pair.held_out for pair in pairs),
        "pairs/held_out": sum(pair.held_out for pair in pairs),
        "pairs/flipped": sum(pair.flipped for pair in pairs),
        **more,
    }
    disk.rewind("pairs", iteration)
    disk.log.log("pairs", iteration=iteration, step=None, values=values)
