"""Prompts as users give them: texts, lists of messages or lists of token ids."""

import operator
import sys
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from tpmm_jax.data.codec import TextCodec, make_codec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.messages import Content
from tpmm_jax.data.prompt_tokens import encode_prompts
from tpmm_jax.data.prompts import parse_prompt
from tpmm_jax.errors import BadInput
from tpmm_jax.weights.source import Model, Source


def check_whole(name: str, value: Any, least: int | None = None) -> None:
    """Raises BadInput unless an argument is a whole number of at least ``least``."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or (least is not None and value < least):
        wanted = "a whole number" if least is None else f"at least {least}"
        raise BadInput(f"{name} is {value!r}; use {wanted}")


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
    given = [token_ids(i, prompt) for i, prompt in enumerate(prompts)]
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


def token_ids(number: int, prompt: Any) -> list[int] | None:
    """Returns a prompt's ids if it is a list of them, else None."""
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


def require(model: Model, output: str, function: str) -> None:
    """Raises BadInput where a reward model stands for a policy, or the reverse.

    Args:
      output: "tokens" or "reward".
      function: what was called, for the message.
    """
    if model.config.output == output:
        return
    name = model.origin.get("source", "this model")
    if output == "tokens":
        raise BadInput(
            f"{function} needs a causal language model, and {name} is a reward model, "
            "which has no logits: use tpmm.score or tpmm.score_tokens"
        )
    raise BadInput(
        f"{function} needs a reward model, and {name} is a causal language model "
        "without a reward head: load one with tpmm.load_reward; tpmm train_reward "
        "gives a causal model a head and trains it"
    )
