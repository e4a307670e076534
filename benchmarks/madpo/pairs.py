"""The pairs of one tier and seed, with the margins of a reward model of their own.

Written once, so that all methods train on the same pairs:

    WORKDIR/data/TIER-SEED.jsonl     prompt, chosen, rejected, margin
    WORKDIR/data/TIER-SEED.json      labels against gold, accuracy of the margins
    WORKDIR/reward/TIER-SEED/        the reward model's run
"""

import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import madpo_study
import numpy as np
import scipy.special

import tpmm_jax as tpmm
from tpmm_jax.store.files import write_json, write_text

TIERS = ("high", "medium", "low")
TRAIN, REWARD = 480, 1400
# Samples of which the worst by gold stands for v1's negative review.
POOL = 8


def write_pairs(workdir: pathlib.Path, tier: str, seed: int) -> None:
    """Writes the file of a tier's pairs, if it is not there."""
    path = workdir / "data" / f"{tier}-{seed}.jsonl"
    if path.exists():
        return
    order = np.random.default_rng([seed, 0]).permutation(len(madpo_study.pool()))
    prompts = [madpo_study.pool()[i] for i in order]
    if len(prompts) < TRAIN + REWARD:
        raise SystemExit(f"{len(prompts)} prompts; wanted {TRAIN + REWARD}")
    known = workdir / "data" / f"{tier}-{seed}.reward.jsonl"
    train = draw(prompts[:TRAIN], tier, [seed, 1])
    write_text(known, lines(draw(prompts[TRAIN : TRAIN + REWARD], tier, [seed, 2])))
    folder = workdir / "reward" / path.stem
    train_reward(known, folder, seed)
    margins = score(folder, train)
    for row, margin in zip(train, margins):
        row["margin"] = margin
    facts = {
        "labels against gold": float(np.mean([row["against"] for row in train])),
        "reward model against gold": float(
            np.mean([(row["margin"] > 0) == (row["lead"] > 0) for row in train])
        ),
        "negative margins": float(np.mean(np.asarray(margins) < 0)),
        "mean |margin|": float(np.mean(np.abs(margins))),
    }
    write_json(path.with_suffix(".json"), facts)
    write_text(path, lines(train))


def lines(rows: Sequence[dict[str, Any]]) -> str:
    """Returns JSON lines of the columns that a run reads."""
    names = ("prompt", "chosen", "rejected", "margin")
    kept = [{name: row[name] for name in names if name in row} for row in rows]
    return "".join(json.dumps(row) + "\n" for row in kept)


def draw(prompts: Sequence[str], tier: str, seed: list[int]) -> list[dict[str, Any]]:
    """Returns pairs whose labels are drawn by Bradley and Terry's chance of gold."""
    rng = np.random.default_rng(seed)
    bad = {"high": [], "medium": prompts[1::2], "low": prompts}[tier]
    own = sample(prompts, 2, rng)
    others = dict(zip(bad, sample(bad, POOL, rng)))
    rows = []
    for i, prompt in enumerate(prompts):
        both = own[i]
        if prompt in others:
            best = both[int(np.argmax(madpo_study.gold([prompt], [both])))]
            pool = others[prompt]
            worst = pool[int(np.argmin(madpo_study.gold([prompt], [pool])))]
            both = [best, worst]
        reward = madpo_study.gold([prompt], [both])[0]
        first = rng.random() < scipy.special.expit(reward[0] - reward[1])
        chosen, rejected = (0, 1) if first else (1, 0)
        lead = float(reward[chosen] - reward[rejected])
        rows.append(
            {
                "prompt": prompt, "chosen": both[chosen], "rejected": both[rejected],
                "lead": lead, "against": lead < 0,
            }
        )  # fmt: skip
    return [row for row in rows if row["chosen"] != row["rejected"]]


def sample(prompts: Sequence[str], count: int, rng: np.random.Generator) -> Any:
    """Returns the model's continuations of each prompt, as texts."""
    model, length = madpo_study.stories260k.theta_0(), 48
    seed = int(rng.integers(2**31))
    return tpmm.generate(model, list(prompts), length, num_samples=count, seed=seed)


def train_reward(pairs: pathlib.Path, workdir: pathlib.Path, seed: int) -> None:
    """Trains the reward model, as a user does."""
    config = pathlib.Path(__file__).parent / "reward.py"
    command = [sys.executable, "-m", "tpmm_jax.train_reward", "--config", str(config)]
    command += ["--workdir", str(workdir), "--set", f"data.pairs={pairs}"]
    subprocess.run([*command, "--set", f"seed={seed}"], check=True)


def score(source: pathlib.Path, rows: Sequence[dict[str, Any]]) -> list[float]:
    """Returns the margins that a reward model gives to pairs."""
    model, found = tpmm.load_reward(source), []
    for side in ("chosen", "rejected"):
        texts = [row["prompt"] + row[side] for row in rows]
        ids = model.tokenizer(texts)["input_ids"]
        ids = [[*row, model.tokenizer.eos_token_id] for row in ids]
        tokens = np.zeros((len(ids), max(map(len, ids))), np.int32)
        mask = np.zeros_like(tokens)
        for b, row in enumerate(ids):
            tokens[b, : len(row)], mask[b, : len(row)] = row, 1
        found.append(np.asarray(tpmm.score_tokens(model, tokens, mask), np.float64))
    return (found[0] - found[1]).tolist()
