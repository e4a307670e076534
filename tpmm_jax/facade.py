"""The functions of ``import tpmm_jax as tpmm``."""

import functools
import operator
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from tpmm_jax import losses
from tpmm_jax.axes import Params
from tpmm_jax.data.codec import TextCodec, make_codec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.messages import Content
from tpmm_jax.data.prompt_tokens import encode_prompts
from tpmm_jax.data.prompts import parse_prompt
from tpmm_jax.errors import BadInput
from tpmm_jax.merging import signal_to_rounding, weighted_sum
from tpmm_jax.mesh import put_batch
from tpmm_jax.models import Decoder, ModelConfig, from_mask
from tpmm_jax.sampling import (
    SamplingConfig,
    check_prompt,
    generate_batches,
    stream_tokens,
    text_pieces,
)
from tpmm_jax.weights.loading import load
from tpmm_jax.weights.source import Model, Source

BATCH_SIZE = 32


def logits(model: Model, tokens_BT: Any, mask_BT: Any) -> Float[Array, "B T V"]:
    """Returns the logits of every position, float32.

    >>> model = tpmm.load("my-model")
    >>> tokens_BT, mask_BT = np.array([[2, 5, 7]]), np.array([[1, 1, 1]])
    >>> tpmm.logits(model, tokens_BT, mask_BT).shape == (1, 3, model.config.vocab_size)
    True

    Args:
      tokens_BT: integer token ids.
      mask_BT: 1 = token, 0 = padding, on the left or on the right. Logits at
        padding mean nothing.

    Raises:
      BadInput: shapes or ids that do not fit.
    """
    batch = check_tokens(model, tokens_BT, mask_BT)
    return _logits(model.decoder, model.params, *batch)


def log_probs(model: Model, tokens_BT: Any, mask_BT: Any) -> Float[Array, "B _"]:
    """Returns log p(token t+1 | tokens up to t), float32 nats.

    >>> model = tpmm.load("my-model")
    >>> tokens_BT, mask_BT = np.array([[2, 5, 7]]), np.array([[1, 1, 1]])
    >>> tpmm.log_probs(model, tokens_BT, mask_BT).shape
    (1, 2)

    Args:
      tokens_BT, mask_BT: as for ``logits``.

    Returns:
      [B, T - 1]; entry t is 0 unless both mask[t] and mask[t + 1] are 1.
    """
    batch = check_tokens(model, tokens_BT, mask_BT)
    return _log_probs(model.decoder, model.params, *batch)


@functools.partial(jax.jit, static_argnums=0)
def _logits(decoder: Decoder, params: Params, tokens: Any, mask: Any) -> jax.Array:
    return decoder.logits(params, decoder.hidden(params, from_mask(tokens, mask)))


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(decoder: Decoder, params: Params, tokens: Any, mask: Any) -> jax.Array:
    return losses.log_probs(decoder, params, from_mask(tokens, mask))


def check_tokens(model: Model, tokens_BT: Any, mask_BT: Any) -> Any:
    """Returns both as int32 on the model's devices; raises BadInput if they misfit."""
    tokens, mask = np.asarray(tokens_BT), np.asarray(mask_BT)
    if tokens.ndim != 2 or tokens.shape != mask.shape:
        raise BadInput(
            f"tokens have shape {tokens.shape}, the mask {mask.shape}; wanted the same "
            "[B, T] for both"
        )
    if not np.issubdtype(tokens.dtype, np.integer):
        raise BadInput(f"tokens are {tokens.dtype}; wanted integer ids")
    mask = (mask > 0).astype(np.int32)
    real = tokens[mask > 0]
    if real.size and not 0 <= real.min() <= real.max() < model.config.vocab_size:
        raise BadInput(
            f"token ids run from {real.min()} to {real.max()}; the vocabulary has "
            f"{model.config.vocab_size}"
        )
    if np.any(np.abs(np.diff(mask, axis=1)).sum(axis=1) > 1):
        # One run of ones touches a side: at most one change per row.
        raise BadInput("a mask has a gap, or padding on both sides; pad on one side")
    return put_batch((tokens.astype(np.int32), mask), model.decoder.mesh)


def generate(
    model: Model,
    prompts: Sequence[Any],
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    num_samples: int = 1,
    seed: int = 0,
    chat: bool = False,
) -> list[list[Any]]:
    """Samples completions.

    >>> model = tpmm.load("my-model")
    >>> [answers] = tpmm.generate(model, ["Hello!"], max_new_tokens=4, num_samples=2)
    >>> len(answers)
    2

    Args:
      prompts: texts, message lists (with chat) or lists of token ids.
      max_new_tokens: bound on a completion, tokens.
      temperature: 0 is greedy.
      top_p, top_k: 1.0 and 0 keep every token.
      num_samples: completions of each prompt, independent of each other.
      seed: the same seed gives the same completions, whatever else is sampled.
      chat: write each prompt with the tokenizer's chat template.

    Returns:
      For each prompt, num_samples completions: texts without special tokens, or,
      for token-list prompts, the new ids with EOS kept.

    Raises:
      BadInput: no tokenizer for text, an empty prompt, or one that is too long.
    """
    if isinstance(prompts, str):
        raise BadInput("prompts is one text; wanted a list of prompts")
    if num_samples < 1:
        raise BadInput(f"num_samples is {num_samples}; use at least 1")
    config = SamplingConfig(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k
    )
    config.validate("generate")
    if not prompts:
        return []
    codec = codec_of(model, chat=chat)
    ids = encode(codec, prompts)
    found: dict[int, list[Any]] = {}
    for places, completions in completion_batches(
        model, ids, config, seed=seed, num_samples=num_samples
    ):
        for i, some in zip(places, completions):
            plain = _token_ids(i, prompts[i]) is not None
            found[i] = some if plain else codec.completion_texts(ids[i], some)
    return [found[i] for i in range(len(prompts))]


def stream(
    model: Model,
    prompt: Any,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    chat: bool = False,
    number: int = 0,
    sample: int = 0,
) -> Iterator[str]:
    """Samples one completion and yields its text as it comes.

    Joined, the pieces are the text of ``generate(model, prompts, ...)[number][sample]``
    with the same prompt at that place and the same other arguments, but for rounding:
    two compiled programs may break a tie between tokens differently.

    >>> model = tpmm.load("my-model")
    >>> pieces = tpmm.stream(model, "Once upon a time", max_new_tokens=4)
    >>> "".join(pieces) == tpmm.generate(
    ...     model, ["Once upon a time"], max_new_tokens=4
    ... )[0][0]
    True

    Args:
      prompt: a text, a message list (with chat) or a list of token ids.
      number, sample: which prompt, and which of its completions, of ``generate``.

    Returns:
      An iterator of texts without special tokens. A character whose bytes have not
      all come, and a word that may go on, are held back.

    Raises:
      BadInput: as ``generate``, at once.
    """
    config = SamplingConfig(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k
    )
    config.validate("stream")
    if model.tokenizer is None:
        raise BadInput(
            "the model has no tokenizer, so there is no text to stream; use generate "
            "with a list of token ids, or load it from a directory with tokenizer.json"
        )
    codec = codec_of(model, chat=chat)
    (ids,) = encode(codec, [prompt])
    check_prompt(0, ids, model.decoder, config)
    tokens = token_stream(model, ids, config, seed=seed, number=number, sample=sample)
    return text_pieces(codec, ids, tokens)


def completion_batches(
    model: Model,
    ids: Sequence[Sequence[int]],
    config: SamplingConfig,
    *,
    seed: int,
    num_samples: int,
    batch_size: int = BATCH_SIZE,
    start: int = 0,
) -> Iterator[tuple[list[int], list[list[list[int]]]]]:
    """Yields (places in ``ids``, the ids of their completions) a batch at a time.

    Args:
      start: place of the first prompt, a multiple of batch_size.
    """
    codec = codec_of(model)
    return generate_batches(
        model.decoder,
        model.params,
        ids,
        key=jax.random.key(seed),
        config=config,
        eos_ids=codec.eos_ids,
        num_samples=num_samples,
        batch_size=batch_size,
        start=start,
        pad_id=codec.pad_id,
    )


def token_stream(
    model: Model,
    ids: Sequence[int],
    config: SamplingConfig,
    *,
    seed: int,
    number: int = 0,
    sample: int = 0,
) -> Iterator[int]:
    """Yields the ids of one completion of ``completion_batches`` as they are drawn."""
    codec = codec_of(model)
    return stream_tokens(
        model.decoder,
        model.params,
        ids,
        key=jax.random.key(seed),
        config=config,
        eos_ids=codec.eos_ids,
        pad_id=codec.pad_id,
        number=number,
        sample=sample,
    )


def codec_of(model: Model | Source, *, chat: bool = False) -> TextCodec:
    """Returns a model's codec that cuts nothing.

    What is too long is refused later, with its true length.
    """
    data = DataConfig(chat=chat, max_prompt_length=sys.maxsize)
    return make_codec(model.config, model.tokenizer, data)


def encode(codec: TextCodec, prompts: Sequence[Any]) -> list[list[int]]:
    """Returns the ids of each prompt.

    Args:
      prompts: texts, message lists (if the codec has chat) or lists of token ids.

    Raises:
      BadInput: names the prompt and what is wrong with it.
    """
    given = [_token_ids(i, prompt) for i, prompt in enumerate(prompts)]
    texts = [_content(i, prompts[i]) for i, ids in enumerate(given) if ids is None]
    if texts and codec.tokenizer is None:
        raise BadInput(
            "the model has no tokenizer: give prompts as lists of token ids, or load "
            "it from a directory that holds tokenizer.json"
        )
    encoded = iter(encode_prompts(codec, texts) if texts else ())
    found = [next(encoded).ids if ids is None else ids for ids in given]
    for i, ids in enumerate(found):
        if not 0 <= min(ids) <= max(ids) < codec.num_embeddings:
            raise BadInput(
                f"prompt {i} has token ids from {min(ids)} to {max(ids)}; the "
                f"vocabulary has {codec.num_embeddings}"
            )
    return found


def _token_ids(number: int, prompt: Any) -> list[int] | None:
    """A prompt's ids if it is a list of them."""
    if isinstance(prompt, str):
        return None
    try:
        if not len(prompt) or isinstance(prompt[0], dict):
            return None
        return [operator.index(i) for i in prompt]
    except (TypeError, KeyError):
        raise BadInput(
            f"prompt {number} is {str(prompt)[:60]}; wanted a text, a list of messages "
            "or a list of token ids"
        ) from None


def _content(number: int, prompt: Any) -> Content:
    """A text, or the messages of a list of them."""
    if not len(prompt):
        raise BadInput(f"prompt {number} is empty; wanted a text or token ids")
    if isinstance(prompt, str):
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise BadInput(f"prompt {number} is not UTF-8: {prompt!r:.80}") from None
    content, faults = parse_prompt(prompt, "prompt")
    if faults:
        raise BadInput(f"prompt {number}: {'; '.join(faults)}")
    return content


def merge(
    models: Sequence[Model | str | os.PathLike], weights: Sequence[float]
) -> Model:
    """Returns the model sum_k w_k theta_k, computed in float32.

    Its origin holds "signal_to_rounding", the size of the merge's change to model 0
    over the float32 rounding error, and "signal_to_rounding_bfloat16", the same of a
    cast to bfloat16, which ``save`` warns of: see ``merging.signal_to_rounding``.
    Tokenizer, chat template and generation settings are those of model 0.

    Warns (UserWarning) of a model with another vocabulary, chat template or end of an
    answer than model 0's, and of weights that do not add up to 1.

    >>> merged = tpmm.merge(["my-model", "my-model"], [0.25, 0.75])
    >>> merged.origin["weights"]
    [0.25, 0.75]

    Args:
      models: models, or what ``load`` takes; paths are loaded one at a time.
      weights: one real number per model; they need not sum to 1.

    Raises:
      BadInput: none, not as many weights, or models of different architecture.
    """
    if not models or len(models) != len(weights):
        both = f"{len(models)} models and {len(weights)} weights"
        raise BadInput(f"{both}; wanted one each")
    if not np.isfinite(np.asarray(weights, float)).all():
        raise BadInput(f"weights are {list(weights)}; wanted finite numbers")
    first = _as_model(models[0])
    remarks = list(filter(None, [sum_remark(weights)]))

    def all_params() -> Iterator[Params]:
        for k, model in enumerate(models):
            params = first if k == 0 else _as_model(model)
            check_same_architecture(first.config, params.config, f"model {k}")
            remarks.extend(merge_remarks(first, params, f"model {k}"))
            yield params.params

    merged, ratio = weighted_sum(all_params(), weights)
    for remark in remarks:
        warnings.warn(remark, stacklevel=2)
    origin = {
        "source": "merge",
        "weights": [float(w) for w in weights],
        "signal_to_rounding": ratio,
        "signal_to_rounding_bfloat16": signal_to_rounding(
            merged, first.params, "bfloat16"
        ),
    }
    decoder = replace(first.decoder, compute_dtype="float32")
    return Model(decoder, merged, first.tokenizer, origin, first.generation)


def sum_remark(weights: Sequence[float]) -> str:
    """Returns what to say of weights that do not add up to 1; "" if they do."""
    total = sum(map(float, weights))
    if abs(total - 1) <= 1e-6:
        return ""
    return f"the weights add up to {total:g}, not to 1"


def merge_remarks(
    first: Model | Source, other: Model | Source, name: str, first_name: str = "model 0"
) -> list[str]:
    """Returns what to say of a model whose texts are not written as the first's."""
    remarks = []
    both = (first.tokenizer, other.tokenizer)
    if None not in both:
        if both[0].get_vocab() != both[1].get_vocab():
            remarks.append(
                f"{name} has a different vocabulary from {first_name}: the merge mixes "
                "embeddings of different tokens, and gets the tokenizer of the first"
            )
        if both[0].chat_template != both[1].chat_template:
            remarks.append(
                f"{name} has a different chat template from {first_name}: the merge "
                "gets that of the first, which the other was not trained with"
            )
    ends = [set(codec_of(model).eos_ids) for model in (first, other)]
    if ends[0] != ends[1]:
        remarks.append(
            f"{name} ends its answers with other token ids ({sorted(ends[1])}) than "
            f"{first_name} ({sorted(ends[0])}): the merge gets those of the first"
        )
    return remarks


def architecture_differences(first: ModelConfig, other: ModelConfig) -> list[str]:
    """Returns "field other's and first's" of each field that the weights' use needs."""
    special = ("eos_ids", "bos_id", "pad_id")
    return [
        f"{f.name} {getattr(other, f.name)} and {getattr(first, f.name)}"
        for f in fields(first)
        if f.name not in special and getattr(first, f.name) != getattr(other, f.name)
    ]


def check_same_architecture(
    first: ModelConfig, other: ModelConfig, name: str, first_name: str = "model 0"
) -> None:
    """Raises BadInput, naming the fields, unless both fit the same weights."""
    if differing := architecture_differences(first, other):
        raise BadInput(
            f"{name} has a different architecture from {first_name} "
            f"({'; '.join(differing)}); only checkpoints of one architecture can be "
            "merged"
        )


def _as_model(model: Model | str | os.PathLike) -> Model:
    return model if isinstance(model, Model) else load(model)
