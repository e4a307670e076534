"""A finished run's folder, written without training, and models to try commands on."""

import functools
import json
import pathlib
import tempfile

import jax
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tpmm_jax.models import Decoder
from tpmm_jax.models.families import make_config
from tpmm_jax.store import Trajectory
from tpmm_jax.store.files import write_json
from tpmm_jax.weights.description import write_description
from tpmm_jax.weights.saving import save
from tpmm_jax.weights.source import Model

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ("<end>", "<user>", "<assistant>", "<system>")


def tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    table = {s: i for i, s in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(table, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(
        [AddedToken(s, special=True, normalized=False) for s in SPECIAL]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", chat_template=CHAT if chat else None
    )


def decoder(width: int = 12, positions: int = 160) -> Decoder:
    return Decoder(
        make_config(
            "llama", vocab_size=260, width=width, mlp_width=14, num_layers=2,
            num_heads=2, num_kv_heads=1, head_dim=4, max_positions=positions,
        )
    )  # fmt: skip


def model(seed: int = 0, chat: bool = True, **sizes: int) -> Model:
    made = decoder(**sizes)
    return Model(made, _params(made, seed), tokenizer(chat))


@functools.cache
def _params(made: Decoder, seed: int):
    return made.init(jax.random.key(seed))


def model_folder(folder: pathlib.Path, **changes) -> pathlib.Path:
    save(model(**changes), folder)
    return folder


def moved(params, seed: int, size: float = 1e-2):
    """The parameters and a step away from them."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    steps = [size * rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, [x + s for x, s in zip(leaves, steps)])


@functools.cache
def finished_run() -> pathlib.Path:
    """A run of three policies; made once a process, to be read only."""
    return run_folder(pathlib.Path(tempfile.mkdtemp()) / "run")


def run_folder(workdir: pathlib.Path, steps: int = 3) -> pathlib.Path:
    """A run of ``steps`` policies, its records beside them."""
    chat, size = True, 0.3
    first = model(chat=chat)
    params = first.params
    (workdir / "model").mkdir(parents=True)
    write_description(first.config, first.tokenizer, "float32", workdir / "model")
    with Trajectory(workdir / "trajectory") as trajectory:
        origin = {"source": "org/base", "commit": "c" * 40}
        trajectory.append(0, params, {"iteration": 0, **origin})
        for step in range(1, steps):
            trajectory.append(step, moved(params, step, size), {"iteration": step})
    config = {
        "iterations": steps - 1,
        "model": {"source": "/home/someone/base"},
        "reference": {"rule": "learned"},
        "loss": {"name": "dpo", "beta": 0.1},
        "scorer": {"name": "module:score"},
        "data": {"prompts": "/home/someone/prompts.jsonl"},
    }
    write_json(workdir / "config.json", config)
    write_json(workdir / "data.json", {"prompts": "a" * 64, "pairs": None})
    rows = []
    for t in range(steps):
        row = {"kind": "iteration", "iteration": t, "reward/mean": 0.1 * t}
        row |= {"reward/low": 0.1 * t - 0.05, "reward/high": 0.1 * t + 0.05}
        if t:
            weights = [[1 / t] * t]
            folder = workdir / "iterations" / f"{t:03d}"
            write_json(
                folder / "reference.json", {"rule": "learned", "weights": weights}
            )
            row |= {"win/theta_0": 0.6, "win/theta_0/low": 0.5, "win/theta_0/high": 0.7}
            row |= {"film/reward/mean": 0.2, "film/reward/low": 0.1}
            row |= {"film/reward/high": 0.3, "watch": ["answers grew 1.7 times"]}
        rows.append(json.dumps(row))
    (workdir / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    session = {"time": 1.0, "versions": {"jax": "0.10.9", "python": "3.11.1"}}
    (workdir / "sessions.jsonl").write_text(json.dumps(session) + "\n")
    return workdir
