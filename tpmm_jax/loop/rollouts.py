"""Sampling, scoring and pairing; or, offline, the iteration's chunk of a pair set."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpmm_jax.data.batches import PairRow
from tpmm_jax.data.decoding import completion_texts
from tpmm_jax.errors import BadInput
from tpmm_jax.loop.answers import sampled_rows
from tpmm_jax.loop.run import ROLLOUT, Run
from tpmm_jax.rewards import LabelledPair, make_pairs
from tpmm_jax.store.files import write_text


@dataclass(frozen=True)
class IterationPairs:
    """An iteration's pairs: those that train, and those that are held out."""

    train: list[PairRow]
    held_out: list[PairRow]

    def digest(self) -> str:
        """Returns a SHA-256 of the training pairs' token ids."""
        ids = [[r.prompt_ids, r.chosen_ids, r.rejected_ids] for r in self.train]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def gather_pairs(run: Run, iteration: int) -> IterationPairs:
    """Returns the iteration's pairs; makes and writes pairs.jsonl if it is missing."""
    path = run.folder(iteration) / "pairs.jsonl"
    if not path.exists():
        if run.pair_chunks is not None:
            rows = _offline_rows(run, iteration)
        else:
            rows = _labelled_rows(run, iteration, roll_out(run, iteration))
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    pairs = read_pairs(run, iteration)
    if not pairs.train:
        raise BadInput(
            f"iteration {iteration} has no training pair: every prompt's responses "
            f"have equal rewards (see {path.parent}); use a finer scorer, more "
            "samples or a higher temperature, in a new --workdir"
        )
    return pairs


def read_pairs(run: Run, iteration: int) -> IterationPairs:
    """Returns what pairs.jsonl of a finished labelling holds."""
    path = run.folder(iteration) / "pairs.jsonl"
    train: list[PairRow] = []
    held_out: list[PairRow] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        row = json.loads(line)
        pair = PairRow(
            row["prompt_ids"],
            row["chosen_ids"],
            row["rejected_ids"],
            f"{path}:{number}",
        )
        (held_out if row["held_out"] else train).append(pair)
    return IterationPairs(train, held_out)


def roll_out(run: Run, iteration: int) -> list[dict[str, Any]]:
    """Samples from theta_{t-1} on the iteration's prompts, and scores."""
    assert run.schedule is not None
    return sampled_rows(
        run.runner,
        run.folder(iteration) / "rollouts.jsonl",
        run.schedule.iteration(iteration),
        run.raters.labelling(),
        params=lambda: run.policy(iteration - 1),
        key=run.key(iteration, ROLLOUT),
        num_samples=run.config.rollout.samples_per_prompt,
        title=f"iteration {iteration}: sample and score",
    )


def _labelled_rows(
    run: Run, iteration: int, rollouts: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    rewards_BR = np.asarray([row["rewards"] for row in rollouts])
    seed = [run.config.seed, iteration]
    held_out = [row["held_out"] for row in rollouts]
    probability = run.config.pairing.flip_probability
    pairs, tied = make_pairs(rewards_BR, held_out, probability, seed=seed)
    pairs = [pair for pair in pairs if not _same_ids(rollouts, pair)]
    lengths = [len(ids) for row in rollouts for ids in row["response_ids"]]
    values = {
        "pairs/train": sum(not pair.held_out for pair in pairs),
        "pairs/held_out": sum(pair.held_out for pair in pairs),
        "pairs/flipped": sum(pair.flipped for pair in pairs),
        "pairs/tied_prompts": tied,
        "rollout/reward_mean": float(rewards_BR.mean()),
        "rollout/reward_std": float(rewards_BR.std()),
        "rollout/length_mean": float(np.mean(lengths)),
    }
    run.rewind("pairs", iteration)
    run.log.log("pairs", iteration=iteration, step=None, values=values)
    rows = []
    for pair in pairs:
        row = rollouts[pair.prompt]
        chosen, rejected = pair.chosen, pair.rejected
        rows.append(
            {
                "prompt": row["prompt"],
                "chosen": row["responses"][chosen],
                "rejected": row["responses"][rejected],
                "chosen_reward": row["rewards"][chosen],
                "rejected_reward": row["rewards"][rejected],
                "flipped": pair.flipped,
                "held_out": pair.held_out,
                "prompt_ids": row["prompt_ids"],
                "chosen_ids": row["response_ids"][chosen],
                "rejected_ids": row["response_ids"][rejected],
            }
        )
    return rows


def _same_ids(rollouts: list[dict[str, Any]], pair: LabelledPair) -> bool:
    ids = rollouts[pair.prompt]["response_ids"]
    return ids[pair.chosen] == ids[pair.rejected]


def _offline_rows(run: Run, iteration: int) -> list[dict[str, Any]]:
    assert run.pair_chunks is not None
    chunk = run.pair_chunks[iteration - 1]
    probability = run.config.pairing.flip_probability
    flips = np.random.default_rng([run.config.seed, iteration, 1]).random(len(chunk))
    rows = []
    for (held_out, row), u in zip(chunk, flips):
        flipped = bool(u < probability)
        chosen, rejected = row.chosen_ids, row.rejected_ids
        if flipped:
            chosen, rejected = rejected, chosen
        text = completion_texts(run.tokenizer, row.prompt_ids, [chosen, rejected])
        rows.append(
            {
                "prompt": run.tokenizer.decode(row.prompt_ids),
                "chosen": text[0],
                "rejected": text[1],
                "origin": row.origin,
                "flipped": flipped,
                "held_out": held_out,
                "prompt_ids": row.prompt_ids,
                "chosen_ids": chosen,
                "rejected_ids": rejected,
            }
        )
    counts = {
        "pairs/train": sum(not r["held_out"] for r in rows),
        "pairs/held_out": sum(r["held_out"] for r in rows),
        "pairs/flipped": sum(r["flipped"] for r in rows),
    }
    run.rewind("pairs", iteration)
    run.log.log("pairs", iteration=iteration, step=None, values=counts)
    return rows
