"""Where a user who watches held-out pairs stops a run: see docs/study.md."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

import tpmm_jax as tpmm

# Sequences at once.
BATCH = 256
# policy -> by prompt, on one pool of hold-outs
Accuracies = dict[int, list[float]]


def pooled_accuracies(folder: pathlib.Path) -> list[Accuracies]:
    """Returns, for t = 1, 2, ..., theta_1 to theta_t on the hold-outs 1 to t.

    A pair is right where log p rose more, from theta_0, on the answer that the label
    prefers; a prompt's accuracy is the mean over its pairs, of all iterations.
    """
    holdouts = []
    for path in sorted(folder.glob("iterations/*/pairs.jsonl")):
        pairs = [json.loads(line) for line in path.read_text().splitlines()]
        holdouts.append([pair for pair in pairs if pair["held_out"]])
    rows = [pair for pairs in holdouts for pair in pairs]
    until = np.repeat(np.arange(1, len(holdouts) + 1), [len(x) for x in holdouts])
    names = [tuple(pair["prompt_ids"]) for pair in rows]
    places = {name: i for i, name in enumerate(dict.fromkeys(names))}
    prompt_P = np.array([places[name] for name in names])
    first_PN = logps_of(folder, 0, rows)
    right_KP = {}
    for k in range(1, len(holdouts) + 1):
        lead_P = (logps_of(folder, k, rows) - first_PN) @ np.array([1.0, -1.0])
        right_KP[k] = lead_P > 0
    found = []
    for t in range(1, len(holdouts) + 1):
        pool_P = until <= t
        groups = prompt_P[pool_P]
        count = np.bincount(groups)
        found.append({
            k: (np.bincount(groups, right_KP[k][pool_P])[count > 0] / count[count > 0])
            .round(4).tolist()
            for k in range(1, t + 1)
        })  # fmt: skip
    return found


def stopping_place(accuracies: Sequence[Accuracies]) -> int:
    """Returns the policy that is kept: the best before the first that falls.

    theta_t falls where the best of the policies before it is ahead by more than one
    standard error of the difference over prompts, on the same pool.
    """
    for t, of in enumerate(accuracies, start=1):
        means = {k: np.mean(of[k]) for k in range(1, t)}
        if not means:
            continue
        best = max(means, key=means.__getitem__)
        lead = np.array(of[best]) - np.array(of[t])
        if lead.mean() > scipy.stats.sem(lead):
            return best
    return len(accuracies)


def logps_of(
    folder: pathlib.Path, t: int, pairs: Sequence[dict[str, Any]]
) -> np.ndarray:
    """Returns log p of (chosen, rejected) under theta_t, nats, [P, 2]."""
    model = tpmm.load(f"{folder}/trajectory@{t}")
    sides = ("chosen_ids", "rejected_ids")
    rows = [(tuple(p["prompt_ids"]), tuple(p[x])) for p in pairs for x in sides]
    unique = list(dict.fromkeys(rows))
    length = max(len(prompt) + len(answer) for prompt, answer in unique)
    known = {}
    for first in range(0, len(unique), BATCH):
        some = unique[first : first + BATCH]
        tokens = np.zeros((BATCH, length), np.int32)
        mask, of_answer = np.zeros_like(tokens), np.zeros_like(tokens)
        for i, (prompt, answer) in enumerate(some):
            end = len(prompt) + len(answer)
            tokens[i, :end], mask[i, :end] = [*prompt, *answer], 1
            of_answer[i, len(prompt) : end] = 1
        logp_SN = np.asarray(tpmm.log_probs(model, tokens, mask)) * of_answer[:, 1:]
        known |= dict(zip(some, logp_SN.sum(axis=1, dtype=np.float64)))
    return np.array([known[row] for row in rows]).reshape(-1, 2)
