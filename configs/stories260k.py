"""A real pretrained model of 260,032 parameters that writes children's stories.

    export TPMM_ASSETS=/path/to/assets     # see docs/models.md
    python -m tpmm_jax.train --config configs/stories260k.py --workdir runs/stories

Each iteration samples 4 continuations of 48 tokens for 256 beginnings of 16 tokens,
all different, which the model itself wrote. The score of a continuation is

    VADER compound + clip(mean log-prob per token under theta_0, -6, -1) + 1.3

that is, cheerful but still fluent; 30 % of the labels are flipped on purpose. Each
policy is evaluated on such beginnings and, out of domain, on unhappier ones. The share
of different words, a score that labels nothing, watches for repetition.
Hardware: two CPU cores, half a minute per iteration. What to expect, and where it was
measured: docs/results.md. Needs the demo extra (VADER).
"""

import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

import tpmm_jax as tpmm
from tpmm_jax.config import (
    Config,
    EvaluationConfig,
    ModelSource,
    RolloutConfig,
)
from tpmm_jax.data.config import DataConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.rewards import PairingConfig, ScorerConfig
from tpmm_jax.rewards.vader import sentiment
from tpmm_jax.steps import TrainConfig

# Beginnings that the model's own stories rarely have: out of domain.
WHO = (
    *("robot", "doctor", "king", "teacher", "ghost", "pirate", "farmer", "queen"),
    *("painter", "soldier", "sailor", "wizard", "baker", "thief", "judge", "captain"),
)
DID = (
    *("was very angry", "lost the keys", "broke the window", "hated the rain"),
    *("sat in the dark", "counted the coins", "burned the soup", "went to the war"),
    *("could not sleep", "wrote a letter", "fell off the ship", "missed the train"),
    *("sold the house", "forgot the song", "heard a noise", "was very ill"),
)
PROMPT_TOKENS = 16
RESPONSE_TOKENS = 48
NUM_PROMPTS = 4096


def model_directory() -> str:
    """Returns $TPMM_ASSETS/models/stories260k."""
    assets = os.environ.get("TPMM_ASSETS")
    path = pathlib.Path(assets or "") / "models" / "stories260k"
    if not assets or not path.is_dir():
        raise BadInput(
            f"TPMM_ASSETS is {assets!r} and {path} is not a directory; docs/models.md "
            "says where to get the model and how to lay it out"
        )
    return str(path)


@functools.cache
def theta_0() -> tpmm.Model:
    """Returns the pretrained model."""
    return tpmm.load(model_directory())


@functools.cache
def prompts() -> list[list[int]]:
    """Returns beginnings of stories as token ids: BOS and what the model writes."""
    model = theta_0()
    bos = [[int(model.tokenizer.bos_token_id)]]
    found = tpmm.generate(
        model, bos * NUM_PROMPTS, max_new_tokens=PROMPT_TOKENS - 1, seed=20240
    )
    eos = model.tokenizer.eos_token_id
    whole = [tuple(bos[0] + ids) for [ids] in found if eos not in ids]
    # A small model often begins alike; a beginning must not be trained on twice, nor
    # both trained and evaluated on.
    return [list(ids) for ids in dict.fromkeys(whole)]


def elsewhere() -> list[str]:
    """Returns beginnings of another kind of story, at most as long as the others."""
    made = [f"The {who} {did}" for did in DID for who in WHO]
    ids = theta_0().tokenizer(made)["input_ids"]
    return [text for text, row in zip(made, ids) if len(row) <= PROMPT_TOKENS]


def variety(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns each response's share of different words: low where it repeats itself."""
    words = [[text.lower().split() for text in texts] for texts in responses]
    return np.array([[len({*w}) / max(len(w), 1) for w in row] for row in words])


def score(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns cheerfulness plus fluency; see the head of this file."""
    model, rows = theta_0(), []
    for prompt, texts in zip(prompts, responses):
        head = model.tokenizer(prompt)["input_ids"]
        for text in texts:
            ids = model.tokenizer(prompt + text)["input_ids"]
            rows.append((len(head), ids))
    # To the next of a few lengths: each is compiled once.
    wanted = max(len(ids) for _, ids in rows)
    step = (PROMPT_TOKENS + RESPONSE_TOKENS) // 4
    length = min(-(-wanted // step) * step, 8 * step)
    tokens = np.zeros((len(rows), length), np.int32)
    mask, of_response = np.zeros_like(tokens), np.zeros_like(tokens)
    for i, (start, ids) in enumerate(rows):
        ids = ids[:length]
        tokens[i, : len(ids)] = ids
        mask[i, : len(ids)] = 1
        of_response[i, min(start, len(ids) - 1) : len(ids)] = 1
    logp = np.asarray(tpmm.log_probs(model, tokens, mask)) * of_response[:, 1:]
    mean = logp.sum(axis=1) / np.maximum(of_response[:, 1:].sum(axis=1), 1)
    fluency = np.clip(mean, -6, -1) + 1.3
    return sentiment(prompts, responses) + fluency.reshape(len(prompts), -1)


def get_config() -> Config:
    """Returns the configuration."""
    return Config(
        iterations=4,
        model=ModelSource(source=model_directory(), remat=False),
        data=DataConfig(
            prompts="stories260k:prompts",
            max_prompt_length=PROMPT_TOKENS,
        ),
        rollout=RolloutConfig(
            prompts_per_iteration=256,
            samples_per_prompt=4,
            max_new_tokens=RESPONSE_TOKENS,
            batch_size=64,
        ),
        scorer=ScorerConfig(name="stories260k:score"),
        pairing=PairingConfig(flip_probability=0.3),
        reference=ReferenceConfig(rule="learned"),
        train=TrainConfig(
            learning_rate=1e-4,
            schedule="constant",
            warmup_fraction=0.0,
            batch_size=32,
            epochs=2,
        ),
        evaluation=EvaluationConfig(
            num_prompts=256,
            sets={"elsewhere": "stories260k:elsewhere"},
            scorers={"variety": "stories260k:variety"},
        ),
    )
