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

from tpmm_jax.data._transcripts import is_transcript, prompt_messages
from tpmm_jax.data.batches import collate, pad_prompts
from tpmm_jax.data.boundary import (
    Side,
    check_limit,
    cut_prompt,
    known_ids,
    leading_ids,
    pad_id,
    require_eos,
    text_ids,
    with_leading,
    without_embedding,
)
from tpmm_jax.data.messages import Content, written
from tpmm_jax.data.pair_tokens import EncodedPairs, count_table, encode_pairs
from tpmm_jax.data.problems import Problems
from tpmm_jax.data.prompts import Prompt
from tpmm_jax.data.templates import Writer
from tpmm_jax.data.view import describe_row
from tpmm_jax.errors import BadInput

__all__ = [
    "EncodedPairs",
    "EncodedPrompt",
    "collate",
    "count_table",
    "describe_row",
    "encode_pairs",
    "encode_prompts",
    "pad_id",
    "pad_prompts",
    "require_eos",
]


class EncodedPrompt(NamedTuple):
    """Token ids of a prompt, and whether it was cut to the limit."""

    ids: list[int]
    truncated: bool


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt | Content],
    *,
    chat: bool,
    max_length: int,
    truncate: Side = "left",
    problems: Problems | None = None,
) -> list[EncodedPrompt]:
    """Encode prompts for sampling.

    Args:
      tokenizer: a Hugging Face tokenizer.
      prompts: texts, conversations or token ids (kept as they are, only cut).
      chat: write texts and conversations with the chat template.
      max_length: the limit in tokens, BOS included.
      truncate: the side that is cut; "left" keeps BOS and the end of the prompt.
      problems: where prompts that cannot be encoded are noted, and left out; without
        it they are raised here.

    Returns:
      One result a prompt, in order.

    Raises:
      BadInput: a limit below 1, no chat template; or, without ``problems``, prompts
        that cannot be encoded, all of them named.
    """
    check_limit("max_length", max_length)
    leading = leading_ids(tokenizer, chat=chat)
    noted = Problems("prompts") if problems is None else problems
    writer = Writer(tokenizer, chat=chat)
    named: list[Prompt] = []
    texts: list[str] = []
    for number, given in enumerate(prompts):
        prompt = _named(given, number)
        text = written(prompt.content)
        try:
            if chat and isinstance(text, str) and is_transcript(text):
                text = prompt_messages(text)
            texts.append("" if text is None else writer.prompt(text))
        except BadInput as error:
            noted.add(prompt.origin, str(error))
            continue
        named.append(prompt)
    if problems is None:
        noted.settle()
    results = []
    for prompt, ids in zip(named, text_ids(tokenizer, texts)):
        own = _given_ids(prompt.content)
        whole = with_leading(ids, leading) if own is None else own
        if not whole or max(whole) >= len(tokenizer):
            wanted = f"wanted one or more from 0 to {known_ids(tokenizer) - 1}"
            noted.add(prompt.origin, f"token ids {whole[:8]}; {wanted}")
            continue
        if fault := without_embedding(tokenizer, whole):
            noted.add(prompt.origin, fault)
            continue
        cut = cut_prompt(whole, max_length, truncate, tokenizer.bos_token_id)
        results.append(EncodedPrompt(cut, len(cut) < len(whole)))
    if problems is None:
        noted.settle()
    return results


def _named(prompt: Prompt | Content, number: int) -> Prompt:
    return prompt if isinstance(prompt, Prompt) else Prompt(prompt, f"prompt {number}")


def _given_ids(content: Content) -> list[int] | None:
    return None if written(content) is not None else cast(list[int], list(content))
