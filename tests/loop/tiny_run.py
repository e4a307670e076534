"""A run of seconds: a random two-layer Gemma, a vocabulary of words, a word count."""

import functools
import io
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tpmm_jax.commands import train
from tpmm_jax.config import Config, EvaluationConfig, ModelSource, RolloutConfig
from tpmm_jax.data.config import DataConfig
from tpmm_jax.log.console import RunConsole
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.models import Decoder
from tpmm_jax.models.families import make_config
from tpmm_jax.rewards import PairingConfig, ScorerConfig
from tpmm_jax.steps import TrainConfig
from tpmm_jax.weights.loading import start_reward
from tpmm_jax.weights.saving import save
from tpmm_jax.weights.source import Model

WORDS = [f"w{i}" for i in range(28)]


def tokenizer() -> PreTrainedTokenizerFast:
    table = {s: i for i, s in enumerate(["<pad>", "<eos>", "<bos>", *WORDS])}
    made = Tokenizer(models.WordLevel(table, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<pad>",
    )


def build_model(directory: pathlib.Path, console: Any = None) -> None:
    """A random model; made once a process."""
    shutil.copytree(_built(), directory, dirs_exist_ok=True)


@functools.cache
def _built() -> pathlib.Path:
    directory = pathlib.Path(tempfile.mkdtemp()) / "model"
    config = make_config(
        "gemma",
        vocab_size=31,
        width=12,
        mlp_width=20,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=6,
        max_positions=64,
        bos_id=2,
        eos_ids=(1,),
        pad_id=0,
    )
    decoder = Decoder(config)
    params = decoder.init(jax.random.key(7))
    save(Model(decoder, params, tokenizer()), directory)
    return directory


def build_reward_model(directory: pathlib.Path) -> None:
    """That model with a random reward head."""
    source = start_reward(_built(), seed=1)
    decoder = Decoder(source.config)
    save(source.model(decoder, source.read(decoder, "float32")), directory)


@functools.cache
def reward_model(seed: int = 0, scale: float = 1.0) -> pathlib.Path:
    """A reward model over the same words with a random head; made once a process."""
    directory = pathlib.Path(tempfile.mkdtemp()) / f"reward-{seed}"
    found = start_reward(_built(), seed)
    decoder = Decoder(found.config)
    params = found.read(decoder, "float32")
    params["score"] = scale * params["score"]
    save(found.model(decoder, params), directory)
    return directory


def prompts() -> list[str]:
    rng = np.random.default_rng(3)
    return [" ".join(rng.choice(WORDS, size=rng.integers(2, 5))) for _ in range(64)]


def score(prompts: list[str], responses: list[list[str]]) -> np.ndarray:
    """The share of even words, less a little for length."""

    def one(text: str) -> float:
        words = text.split()
        even = [w for w in words if w[1:].isdigit() and int(w[1:]) % 2 == 0]
        return len(even) / max(len(words), 1) - 0.001 * len(words)

    return np.asarray([[one(text) for text in texts] for texts in responses])


def get_config(**changes: Any) -> Config:
    fields: dict[str, Any] = {
        "iterations": 2,
        "model": ModelSource(source="tiny_run:build_model", remat=False),
        "data": DataConfig(prompts="tiny_run:prompts", max_prompt_length=8),
        "rollout": RolloutConfig(
            prompts_per_iteration=12,
            samples_per_prompt=3,
            max_new_tokens=8,
            batch_size=4,
        ),
        "scorer": ScorerConfig(name="tiny_run:score"),
        "pairing": PairingConfig(holdout_fraction=0.3, flip_probability=0.1),
        "reference": ReferenceConfig(
            rule="learned", fit="adam", steps=12, batch_size=8
        ),
        "train": TrainConfig(
            learning_rate=3e-3, batch_size=4, epochs=2, checkpoint_every=1
        ),
        "evaluation": EvaluationConfig(num_prompts=6),
    }
    return Config(**{**fields, **changes})


def start(config: Config, workdir: pathlib.Path, **options: Any) -> str:
    """Runs a config; returns what the console says, on one line."""
    out = io.StringIO()
    train.run(config, workdir, RunConsole(out, out), **options)
    return " ".join(out.getvalue().split())
