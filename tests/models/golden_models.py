"""The families' fixtures: small models with transformers' own numbers."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from tpmm_jax.losses import log_probs
from tpmm_jax.models import Decoder, from_mask
from tpmm_jax.weights.hf_config import parse_config
from tpmm_jax.weights.huggingface import SafetensorsDirectory, read_params

# Folders of tests/fixtures; "llama" is of Llama 3's kind, "llama_bias" has biases and
# linear rope scaling. All with windows have sequences longer than these.
FAMILIES = (
    "gemma", "gemma2", "gemma3", "llama", "llama2", "llama_bias", "mistral", "mixtral",
    "qwen2", "qwen3", "qwen3_moe",
)  # fmt: skip


def config_of(folder, file="config.json"):
    return parse_config(json.loads((folder / file).read_text()), file)


@functools.cache
def read(fixtures: pathlib.Path, family: str):
    """The decoder, parameters and golden arrays of a fixture."""
    folder = fixtures / family
    decoder = Decoder(config_of(folder))
    params = read_params(SafetensorsDirectory(folder), decoder, "float32")
    return decoder, params, dict(np.load(folder / "golden.npz"))


def ints(x):
    return jnp.asarray(x, jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def _numbers(decoder, params, tokens, mask):
    rows = from_mask(tokens, mask)
    logits = decoder.logits(params, decoder.hidden(params, rows))
    # Five positions a chunk: the last chunk is partly filling.
    chunk = 5 * 4 * len(tokens) * decoder.config.vocab_size
    chunked = dataclasses.replace(decoder, chunk_bytes=chunk)
    return logits, log_probs(chunked, params, rows)


def numbers(decoder, params, tokens, mask):
    """Logits [4, 30, V] and log-probs [4, 29] of up to four rows of up to 30 slots.

    Filled up at the right, so that one program a family serves every test.
    """
    tokens, mask = (np.asarray(x, np.int32) for x in (tokens, mask))
    filler = [(0, most - size) for most, size in zip((4, 30), tokens.shape)]
    tokens, mask = (np.pad(x, filler) for x in (tokens, mask))
    return jax.device_get(_numbers(decoder, params, tokens, mask))


@functools.partial(jax.jit, static_argnums=(0, 4))
def prefill(decoder, params, tokens, mask, new_tokens):
    return decoder.prefill(params, from_mask(tokens, mask), new_tokens=new_tokens)


@functools.partial(jax.jit, static_argnums=0)
def decode(decoder, params, tokens, state):
    return decoder.decode(params, tokens, state)


@functools.partial(jax.jit, static_argnums=0)
def one_logits(decoder, params, hidden):
    return decoder.logits(params, hidden[:, None])[:, 0]


@functools.cache
def rounding(fixtures: pathlib.Path, family: str) -> float:
    """By how much float32 programs of one function may differ on a fixture's tokens.

    Each rounds as if its weights were off by a unit in the last place; what that moves
    the logits by is measured, twice of which two programs may be apart. On one
    processor they were within 1e-5, on another (an AMD EPYC) within 3.5e-5.
    """
    decoder, params, golden = read(fixtures, family)
    tokens = golden["input_ids"]
    exact = numbers(decoder, params, tokens, np.ones_like(tokens))[0]
    rng, found = np.random.default_rng(0), 0.0

    def nudge(x):
        towards = np.where(rng.random(x.shape) < 0.5, np.inf, -np.inf)
        return jnp.asarray(np.nextafter(np.asarray(x), towards.astype(np.float32)))

    for _ in range(3):
        moved = jax.tree.map(nudge, params)
        near = numbers(decoder, moved, tokens, np.ones_like(tokens))[0]
        found = max(found, float(np.abs(near - exact).max()))
    return 2 * found
