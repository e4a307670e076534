"""A source of pairs or prompts as token ids: what a run takes, and a check reads."""

from collections.abc import Collection
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.messages import Content, written
from tpmm_jax.data.pair_tokens import encode_pairs
from tpmm_jax.data.pairs import PreferencePair, read_pair_set
from tpmm_jax.data.problems import Problems
from tpmm_jax.data.prompts import Prompt, read_prompt_set
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.tokens import EncodedPrompt, encode_prompts


@dataclass(frozen=True)
class Prepared:
    """A source that was read and, with a tokenizer, encoded.

    Attributes:
      pairs: those that can be read; some of them may not be encoded.
      rows: those that train, in order.
      counts: of the reader and of the tokenizer; see ``pair_tokens.count_table``.
      problems: what is wrong; ``settle`` refuses it, or counts what is left out.
      chat: whether the rows were written with the chat template.
    """

    pairs: list[PreferencePair]
    rows: list[PairRow]
    counts: dict[str, int]
    problems: Problems = field(repr=False)
    chat: bool


def prepare_pairs(
    source: str,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    eos_ids: Collection[int] = (),
    auto_chat: bool = False,
) -> Prepared:
    """Read and encode preference pairs as ``data`` says.

    Args:
      source: see ``sources.read_rows``.
      data: columns, limits, the chat template, what becomes of bad rows.
      tokenizer: None: the pairs are read only.
      eos_ids: see ``pair_tokens.encode_pairs``.
      auto_chat: switch the chat template on where the rows are messages.

    Raises:
      BadInput: no source of this name or kind, or a limit below 1. What is wrong with
        rows is in ``problems``.
    """
    problems = Problems(source, on_bad_rows=data.on_bad_rows)
    found = read_pair_set(source, problems, split=data.split, fields=data.fields)
    counts, rows, chat = dict(found.counts), list[PairRow](), data.chat
    if auto_chat and found.pairs:
        chat = chat or wants_template(tokenizer, found.pairs[0].prompt)
    if tokenizer is not None:
        before = len(problems.origins())
        rows, encoded = encode_pairs(
            tokenizer,
            found.pairs,
            chat=chat,
            max_prompt_length=data.max_prompt_length,
            max_completion_length=data.max_completion_length,
            truncate=data.truncate_prompt,
            eos_ids=eos_ids,
            problems=problems,
        )
        counts |= encoded
        counts["not_encoded"] = len(problems.origins()) - before
    return Prepared(found.pairs, rows, counts, problems, chat)


@dataclass(frozen=True)
class PreparedPrompts:
    """A source of prompts that was read and, with a tokenizer, encoded.

    Attributes:
      prompts: those that can be read; some of them may not be encoded.
      usable: those that can be sampled from, in order; without a tokenizer all.
      encoded: the token ids of these; empty without a tokenizer.
      counts: rows_read, malformed, prompts, prompt_truncated, not_encoded.
      problems, chat: see ``Prepared``.
    """

    prompts: list[Prompt]
    usable: list[Prompt]
    encoded: list[EncodedPrompt] = field(repr=False)
    counts: dict[str, int]
    problems: Problems = field(repr=False)
    chat: bool


def prepare_prompts(
    source: str,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    auto_chat: bool = False,
) -> PreparedPrompts:
    """Read and encode prompts as ``data`` says; arguments as of ``prepare_pairs``."""
    problems = Problems(source, on_bad_rows=data.on_bad_rows)
    prompts, rows_read = read_prompt_set(
        source, problems, field=data.prompt_field, split=data.split
    )
    counts = {"rows_read": rows_read, "malformed": len(problems.bad_rows())}
    counts["prompts"] = len(prompts)
    chat = data.chat
    if tokenizer is None:
        return PreparedPrompts(prompts, prompts, [], counts, problems, chat)
    if auto_chat and prompts:
        chat = chat or wants_template(tokenizer, prompts[0].content)
    encoded = encode_prompts(
        tokenizer,
        prompts,
        chat=chat,
        max_length=data.max_prompt_length,
        truncate=data.truncate_prompt,
        problems=problems,
    )
    bad = problems.origins()
    usable = [prompt for prompt in prompts if prompt.origin not in bad]
    counts["prompt_truncated"] = sum(prompt.truncated for prompt in encoded)
    counts["not_encoded"] = len(prompts) - len(usable)
    return PreparedPrompts(prompts, usable, encoded, counts, problems, chat)


def wants_template(tokenizer: PreTrainedTokenizerBase | None, content: Content) -> bool:
    """Whether a content is messages and the tokenizer can write them."""
    has = getattr(tokenizer, "chat_template", None) is not None
    return has and isinstance(written(content), tuple)
