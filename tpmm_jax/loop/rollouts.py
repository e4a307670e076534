"""Sampling, scoring and pairing; or, offline, the iteration's chunk of a pair set."""

import hashlib
import json
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.data.batches import PairRow
from tpmm_jax.data.decoding import completion_texts
from tpmm_jax.errors import BadInput
from tpmm_jax.loop.prompts import EncodedPrompts
from tpmm_jax.loop.run import ROLLOUT, Run
from tpmm_jax.rewards import LabelledPair, make_pairs, score
from tpmm_jax.sampling import generate_batches
from tpmm_jax.store.files import append_lines, read_lines_repaired, write_text


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
        run,
        run.folder(iteration) / "rollouts.jsonl",
        run.schedule.iteration(iteration),
        policy=iteration - 1,
        key=run.key(iteration, ROLLOUT),
        num_samples=run.config.rollout.samples_per_prompt,
        title=f"iteration {iteration}: sample and score",
    )


def sampled_rows(
    run: Run,
    path: pathlib.Path,
    prompts: EncodedPrompts,
    *,
    policy: int,
    key: jax.Array,
    num_samples: int,
    title: str,
) -> list[dict[str, Any]]:
    """Returns a row a prompt: its text, responses and rewards, and their token ids.

    Rows are appended to ``path`` a batch at a time; those that are there already are
    read, up to the last whole batch, and not sampled again.
    """
    lines, size = read_lines_repaired(path), run.config.rollout.batch_size
    done = len(lines) if len(lines) == len(prompts.ids) else len(lines) // size * size
    if done < len(lines):
        write_text(path, "".join(line + "\n" for line in lines[:done]))
    rows = [json.loads(line) for line in lines[:done]]
    if done == len(prompts.ids):
        return rows
    params = run.policy(policy)
    with run.console.phase(title, len(prompts.ids), "prompts") as bar:
        bar.advance(done)
        for batch in sample_and_score(
            run, params, prompts, key=key, num_samples=num_samples, start=done
        ):
            append_lines(path, [json.dumps(row) for row in batch])
            rows += batch
            mean = np.mean([row["rewards"] for row in rows])
            bar.advance(len(batch), reward=f"{mean:.3f}")
            run.stop.check()
    return rows


def sample_and_score(
    run: Run,
    params: Params,
    prompts: EncodedPrompts,
    *,
    key: jax.Array,
    num_samples: int,
    start: int,
) -> Iterator[list[dict[str, Any]]]:
    """Yields a batch of rows: prompt, responses, rewards, token ids."""
    assert run.scorer is not None
    batches = generate_batches(
        run.decoder,
        params,
        prompts.ids,
        key=key,
        config=run.config.rollout.sampling(),
        eos_ids=run.eos_ids,
        num_samples=num_samples,
        batch_size=run.config.rollout.batch_size,
        numbers=prompts.numbers,
        start=start,
        length=run.prompt_length,
        pad_id=run.pad_id,
    )
    for places, completions in batches:
        texts = [prompts.texts[i] for i in places]
        responses = [
            completion_texts(run.tokenizer, prompts.ids[i], ids)
            for i, ids in zip(places, completions)
        ]
        name = str(run.config.scorer.name)
        rewards_BR = score(run.scorer, texts, responses, name=name)
        yield [
            {
                "prompt": texts[b],
                "responses": responses[b],
                "rewards": rewards_BR[b].tolist(),
                "held_out": prompts.held_out[i],
                "prompt_ids": prompts.ids[i],
                "response_ids": completions[b],
            }
            for b, i in enumerate(places)
        ]


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
