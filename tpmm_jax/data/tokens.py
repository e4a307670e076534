"""Prompts and completions as token ids.

What holds of every row: BOS stands once, at the front of the prompt, if the tokenizer
(or the chat template) puts it there; a completion does not begin with BOS and ends
with EOS once, unless it was cut; its ids are those it has in the joined text. Where
tokens merge across the boundary (a prompt that ends in a space, say), the prompt
keeps its ids, as at sampling time, and the completion is tokenised apart without
gaining a leading space; this is counted as boundary_merged.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from tpmm_jax.data.batches import PairRow, collate, describe_row, pad_prompts
from tpmm_jax.data.boundary import (
    SIDES,
    Side,
    check_limit,
    completion_ids,
    cut_prompt,
    end_completion,
    ids_apart,
    leading_ids,
    pad_id,
    require_eos,
    text_ids,
    with_leading,
    without_bos,
)
from tpmm_jax.data.messages import Content, Written, written
from tpmm_jax.data.pair_tokens import EncodedPairs, count_table, encode_pairs
from tpmm_jax.data.problems import Problems
from tpmm_jax.data.prompts import Prompt
from tpmm_jax.data.templates import completion_text, prompt_text
from tpmm_jax.errors import BadInput

__all__ = [
    "EncodedCompletion",
    "EncodedPairs",
    "EncodedPrompt",
    "PairRow",
    "collate",
    "count_table",
    "describe_row",
    "encode_completion",
    "encode_pairs",
    "encode_prompt",
    "encode_prompts",
    "pad_id",
    "pad_prompts",
    "require_eos",
]


class EncodedPrompt(NamedTuple):
    """Token ids of a prompt, and whether it was cut to the limit."""

    ids: list[int]
    truncated: bool


class EncodedCompletion(NamedTuple):
    """Token ids of a completion; whether it was cut, or tokenised apart."""

    ids: list[int]
    truncated: bool
    boundary_merged: bool


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt | Content,
    *,
    chat: bool,
    max_length: int,
    truncate: Side = "left",
) -> EncodedPrompt:
    """Encode one prompt; see ``encode_prompts``."""
    return encode_prompts(
        tokenizer, [prompt], chat=chat, max_length=max_length, truncate=truncate
    )[0]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt | Content],
    *,
    chat: bool,
    max_length: int,
    truncate: Side = "left",
) -> list[EncodedPrompt]:
    """Encode prompts for sampling.

    Args:
      tokenizer: a Hugging Face tokenizer.
      prompts: texts, conversations or token ids (kept as they are, only cut).
      chat: write texts and conversations with the chat template.
      max_length: the limit in tokens, BOS included.
      truncate: the side that is cut; "left" keeps BOS and the end of the prompt.

    Returns:
      One result a prompt, in order.

    Raises:
      BadInput: a limit below 1, no chat template, or prompts that cannot be encoded,
        all of them named.
    """
    check_limit("max_length", max_length)
    leading = leading_ids(tokenizer, chat=chat)
    problems = Problems("prompts")
    named = [_named(prompt, number) for number, prompt in enumerate(prompts)]
    texts = []
    for prompt in named:
        text = written(prompt.content)
        try:
            texts.append(
                "" if text is None else prompt_text(tokenizer, text, chat=chat)
            )
        except BadInput as error:
            problems.add(prompt.origin, str(error))
    problems.settle()
    results = []
    for prompt, ids in zip(named, text_ids(tokenizer, texts)):
        given = _given_ids(prompt.content)
        whole = with_leading(ids, leading) if given is None else given
        if not whole or max(whole) >= len(tokenizer):
            wanted = f"wanted one or more from 0 to {len(tokenizer) - 1}"
            problems.add(prompt.origin, f"token ids {whole[:8]}; {wanted}")
            continue
        cut = cut_prompt(whole, max_length, truncate, tokenizer.bos_token_id)
        results.append(EncodedPrompt(cut, len(cut) < len(whole)))
    problems.settle()
    return results


def _named(prompt: Prompt | Content, number: int) -> Prompt:
    return prompt if isinstance(prompt, Prompt) else Prompt(prompt, f"prompt {number}")


def _given_ids(content: Content) -> list[int] | None:
    return None if written(content) is not None else cast(list[int], list(content))


def encode_completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt_content: Content,
    prompt_ids: list[int],
    completion: Written,
    *,
    chat: bool,
    max_length: int,
) -> EncodedCompletion:
    """Encode one completion, so that prompt_ids + ids is what is trained on.

    Args:
      tokenizer: a Hugging Face tokenizer that has EOS.
      prompt_content: what prompt_ids were made from.
      prompt_ids: the prompt's ids, cut or not. Where they are not ids of
        prompt_content, the completion is tokenised apart.
      completion: a text, or messages that begin and end with the assistant's.
      chat: as for the prompt.
      max_length: the limit in tokens, EOS included.

    Returns:
      The ids, EOS last unless they were cut on the right, and what was done.

    Raises:
      BadInput: a limit below 1, no EOS, no chat template, or a conversation that the
        template cannot write.
    """
    check_limit("max_length", max_length)
    eos, bos = require_eos(tokenizer), tokenizer.bos_token_id
    leading = leading_ids(tokenizer, chat=chat)
    content = written(prompt_content)
    if content is None:
        if not isinstance(completion, str):
            raise BadInput("a token-id prompt wants a text completion, not messages")
        ids, merged = ids_apart(tokenizer, [completion])[0], True
    else:
        text = prompt_text(tokenizer, content, chat=chat)
        tail, _ = completion_text(tokenizer, content, text, completion, chat=chat)
        tokens, joined = text_ids(tokenizer, [text, text + tail])
        whole, size = with_leading(tokens, leading), len(prompt_ids)
        cuts = [cut_prompt(whole, size, side, bos) for side in SIDES]
        # Ids of another origin have no boundary in the joined text.
        front = tokens if prompt_ids in cuts else [-1]
        all_ids, all_merged = completion_ids(tokenizer, [front], [tail], [joined])
        ids, merged = all_ids[0], all_merged[0]
    ids, truncated = end_completion(without_bos(ids, bos, eos), eos, max_length)
    return EncodedCompletion(ids, truncated, merged)
