"""Prompts as token ids, with BOS once if the tokenizer or the template puts it."""

from collections.abc import Sequence
from typing import NamedTuple, cast

from tpmm_jax.data._boundary import cut_prompt, leading_ids, text_ids, with_leading
from tpmm_jax.data._rendering import TemplateStopped
from tpmm_jax.data._templates import Writer
from tpmm_jax.data._transcripts import is_transcript, prompt_messages
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.messages import Content, without_ids
from tpmm_jax.data.problems import Problems
from tpmm_jax.data.prompts import Prompt
from tpmm_jax.errors import BadInput


class EncodedPrompt(NamedTuple):
    """Token ids of a prompt, and whether it was cut to the limit."""

    ids: list[int]
    truncated: bool


def encode_prompts(
    codec: TextCodec,
    prompts: Sequence[Prompt | Content],
    problems: Problems | None = None,
) -> list[EncodedPrompt]:
    """Encode prompts for sampling.

    Args:
      codec: of a model with a tokenizer.
      prompts: texts, conversations or token ids (kept as they are, only cut).
      problems: where prompts that cannot be encoded are noted, and left out; without
        it they are raised here.

    Returns:
      One result per prompt, in order.

    Raises:
      BadInput: no chat template; or, without ``problems``, prompts that cannot be
        encoded, all of them named.
    """
    leading = leading_ids(codec)
    noted = Problems("prompts") if problems is None else problems
    kept, texts = _write(codec, prompts, noted)
    if problems is None:
        noted.settle()
    results = []
    for prompt, ids in zip(kept, text_ids(codec.tokenizer, texts)):
        own = _given_ids(prompt.content)
        whole = with_leading(ids, leading) if own is None else own
        if fault := _fault(codec, whole):
            noted.add(prompt.origin, fault)
            continue
        cut = cut_prompt(codec, whole)
        results.append(EncodedPrompt(cut, len(cut) < len(whole)))
    if problems is None:
        noted.settle()
    return results


def _write(
    codec: TextCodec, prompts: Sequence[Prompt | Content], problems: Problems
) -> tuple[list[Prompt], list[str]]:
    """The prompts that can be written, and the text of each; "" of token ids."""
    writer = Writer(codec)
    kept: list[Prompt] = []
    texts: list[str] = []
    for number, given in enumerate(prompts):
        prompt = _named(given, number)
        text = without_ids(prompt.content)
        try:
            if codec.chat and isinstance(text, str) and is_transcript(text):
                text = prompt_messages(text)
            texts.append("" if text is None else writer.prompt(text))
        except TemplateStopped as error:
            raise TemplateStopped(f"{prompt.origin}: {error}") from None
        except BadInput as error:
            problems.add(prompt.origin, str(error))
            continue
        kept.append(prompt)
    return kept, texts


def _fault(codec: TextCodec, ids: list[int]) -> str:
    """What is wrong with a prompt's ids; else ""."""
    if not ids or max(ids) >= len(codec.tokenizer):
        return f"token ids {ids[:8]}; wanted one or more from 0 to {codec.num_ids - 1}"
    return codec.embedding_fault(ids)


def _named(prompt: Prompt | Content, number: int) -> Prompt:
    return prompt if isinstance(prompt, Prompt) else Prompt(prompt, f"prompt {number}")


def _given_ids(content: Content) -> list[int] | None:
    return None if without_ids(content) is not None else cast(list[int], list(content))
