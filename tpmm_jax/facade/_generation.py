"""Completions of prompts: whole, in batches, or as a stream."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from tpmm_jax.errors import BadInput
from tpmm_jax.facade._prompts import check_whole, codec_of, encode, require, token_ids
from tpmm_jax.sampling import (
    SamplingConfig,
    check_prompt,
    generate_batches,
    stream_tokens,
    text_pieces,
)
from tpmm_jax.weights.source import Model

BATCH_SIZE = 32


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
    require(model, "tokens", "generate")
    if isinstance(prompts, str):
        raise BadInput("prompts is one text; wanted a list of prompts")
    check_whole("num_samples", num_samples, 1)
    check_whole("seed", seed)
    config = SamplingConfig(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k
    )
    config.validate(str)
    if not prompts:
        return []
    codec = codec_of(model, chat=chat)
    ids = encode(codec, prompts)
    found: dict[int, list[Any]] = {}
    for places, completions in completion_batches(
        model, ids, config, seed=seed, num_samples=num_samples
    ):
        for i, some in zip(places, completions):
            plain = token_ids(i, prompts[i]) is not None
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
    require(model, "tokens", "stream")
    config.validate(str)
    for name, value in (("seed", seed), ("number", number), ("sample", sample)):
        check_whole(name, value, None if name == "seed" else 0)
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
        num_ids=codec.num_drawn,
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
        num_ids=codec.num_drawn,
        pad_id=codec.pad_id,
        number=number,
        sample=sample,
    )
