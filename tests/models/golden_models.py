"""The families' fixtures: small models with transformers' own numbers."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

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


@functools.partial(jax.jit, static_argnums=(0, 4))
def prefill(decoder, params, tokens, mask, new_tokens):
    return decoder.prefill(params, from_mask(tokens, mask), new_tokens=new_tokens)


@functools.partial(jax.jit, static_argnums=0)
def decode(decoder, params, tokens, state):
    return decoder.decode(params, tokens, state)


@functools.partial(jax.jit, static_argnums=0)
def one_logits(decoder, params, hidden):
    return decoder.logits(params, hidden[:, None])[:, 0]
