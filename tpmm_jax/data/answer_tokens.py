"""Prompts with their answers as rows of token ids, for a model that reads them whole.

A row is what a pair's side is in training: BOS once at most, the answer's ids as they
are in the joined text, and its end. An answer that was cut has no end.
"""

from collections.abc import Sequence

from tpmm_jax.data._boundary import (
    end_completion,
    leading_ids,
    text_ids,
    with_leading,
    without_bos,
    without_end,
)
from tpmm_jax.data._joining import Joiner
from tpmm_jax.data._templates import OpenPrompt, Writer
from tpmm_jax.data._transcripts import is_transcript, prompt_messages
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.messages import (
    Content,
    Written,
    as_messages,
    without_ids,
)
from tpmm_jax.errors import BadInput


def as_asked(codec: TextCodec, content: Content, ids: Sequence[int]) -> Written:
    """Returns a prompt as any model can read it.

    Args:
      codec: of the model that answers it.
      content: as it was given.
      ids: its ids for that model.

    Returns:
      Messages where that model writes them with a chat template; else a text, that of
      the ids where ids were given.
    """
    text = without_ids(content)
    if text is None:
        return codec.decode(ids)
    if not codec.chat:
        return text
    if isinstance(text, str) and is_transcript(text):
        return prompt_messages(text)
    return as_messages(text, "user")


def encode_answers(
    codec: TextCodec,
    prompts: Sequence[Written],
    answers: Sequence[Sequence[str]],
    ended: Sequence[Sequence[bool]],
) -> list[list[list[int]]]:
    """Returns the ids of each prompt with each of its answers.

    Args:
      codec: of a model with a tokenizer that has EOS. Its limits cut nothing here.
      prompts: texts or, with ``chat``, conversations.
      answers: of each prompt, as texts without special tokens.
      ended: whether each came to its end; one that did not gets no EOS.

    Raises:
      BadInput: no chat template, or a prompt, named, that it cannot write.
    """
    codec.require_eos()
    leading, joiner = leading_ids(codec), Joiner(codec.tokenizer)
    opened, written = _write(codec, prompts, answers, ended)
    prompt_ids = text_ids(codec.tokenizer, [one.text for one in opened])
    fronts = joiner.fronts([one.text for one in opened], prompt_ids)
    flat = [front for front, texts in zip(fronts, written) for _ in texts]
    joined = iter(
        joiner.completions(flat, [text for texts in written for text in texts])
    )
    rows = []
    for ids, ends in zip(prompt_ids, ended):
        head = with_leading(ids, leading)
        rows.append([[*head, *_answer(codec, next(joined).ids, e)] for e in ends])
    for number, some in enumerate(rows):
        if fault := codec.embedding_fault(*some):
            raise BadInput(f"prompt {number} with its answers: {fault}")
    return rows


def _answer(codec: TextCodec, ids: list[int], ended: bool) -> list[int]:
    """An answer's ids up to its end.

    Text behind an end that the answer spells out counts too: it was written.
    """
    clean = without_bos(codec, ids)
    found = end_completion(codec, clean)
    whole = without_end(codec, clean if found.fault else found.ids[:-1])
    if not ended:
        return whole
    return [*whole, codec.require_eos() if found.fault else found.ids[-1]]


def _write(
    codec: TextCodec,
    prompts: Sequence[Written],
    answers: Sequence[Sequence[str]],
    ended: Sequence[Sequence[bool]],
) -> tuple[list[OpenPrompt], list[list[str]]]:
    """The text of each prompt, and those of its answers."""
    writer = Writer(codec)
    opened: list[OpenPrompt] = []
    written: list[list[str]] = []
    for number, (prompt, texts, ends) in enumerate(zip(prompts, answers, ended)):
        try:
            one = writer.open_prompt(prompt)
            some = [writer.completion(prompt, one, text)[0] for text in texts]
        except BadInput as error:
            raise type(error)(f"prompt {number}: {error}") from None
        opened.append(one)
        cuts = (
            text if end else text.removesuffix(writer.closing)
            for text, end in zip(some, ends)
        )
        written.append(list(cuts))
    return opened, written
