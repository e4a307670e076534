"""What turns a model's texts into token ids and back: made once, handed on whole."""

import datetime
import functools
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tpmm_jax.data.config import DataConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.models import ModelConfig


def today() -> datetime.date:
    """The day that a chat template writes where no run's day is known."""
    return datetime.date.today()


@dataclass(frozen=True, kw_only=True)
class TextCodec:
    """A tokenizer with all that decides how it is used.

    Nothing is ever written onto the tokenizer, which may serve other models too.

    Attributes:
      tokenizer: a transformers tokenizer; None: prompts are token ids.
      num_embeddings: ids, from 0, that the model embeds. A tokenizer may hold more: all
        of Gemma 3's know an image token that the text models have no row for, and
        padding is often added without one.
      eos_ids: every id that ends a completion, the tokenizer's EOS among them.
      chat: write texts and conversations with the chat template.
      date: the day that a chat template writes, if it writes one.
      max_prompt_length: tokens, BOS included.
      max_completion_length: tokens, EOS included; cut on the right.
      truncate_prompt: the side on which prompts are cut; "left" keeps BOS and the end.

    Raises:
      BadInput: a limit that leaves no room for a token.
    """

    tokenizer: Any
    num_embeddings: int
    eos_ids: tuple[int, ...]
    chat: bool = False
    date: datetime.date = field(default_factory=today)
    max_prompt_length: int = sys.maxsize
    max_completion_length: int = sys.maxsize
    truncate_prompt: Literal["left", "right"] = "left"

    def __post_init__(self) -> None:
        for name in ("max_prompt_length", "max_completion_length"):
            if (value := getattr(self, name)) < 1:
                raise BadInput(f"{name} is {value}; wanted 1 token or more")

    @property
    def num_ids(self) -> int:
        """How many ids, from 0, the tokenizer gives and the model embeds."""
        return min(len(self.tokenizer), self.num_embeddings)

    @functools.cached_property
    def num_drawn(self) -> int | None:
        """How many ids, from 0, a policy may draw; None: all that it embeds.

        The rows beyond are there to pad the embedding, and are no text.
        """
        if self.tokenizer is None:
            return None
        last = max((*self.tokenizer.get_vocab().values(), *self.eos_ids))
        return last + 1 if last + 1 < self.num_embeddings else None

    # Kept, since a transformers tokenizer takes its time to tell these ids.
    @functools.cached_property
    def bos_id(self) -> int | None:
        """The tokenizer's BOS, if it has one."""
        return self.tokenizer.bos_token_id

    @functools.cached_property
    def eos_id(self) -> int | None:
        """The tokenizer's EOS, if it has one."""
        return self.tokenizer.eos_token_id

    @functools.cached_property
    def unknown_id(self) -> int | None:
        """The id of unknown text; None where that id has another meaning too."""
        found = self.tokenizer.unk_token_id
        others = (self.bos_id, self.eos_id, self.tokenizer.pad_token_id)
        return None if found in others else found

    @functools.cached_property
    def pad_id(self) -> int:
        """An id to fill with: PAD, else EOS, else 0. No mask is derived from it."""
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(self.tokenizer, name, None)
            if value is not None and value < self.num_ids:
                return value
        return 0

    @functools.cached_property
    def digest(self) -> str:
        """A SHA-256 of the vocabulary and the chat template."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        content = json.dumps([vocabulary, self.tokenizer.chat_template])
        return hashlib.sha256(content.encode()).hexdigest()

    def require_eos(self) -> int:
        """The id of EOS.

        Raises:
          BadInput: there is none, so no completion could be taught to end.
        """
        if self.eos_id is None:
            raise BadInput(
                "the tokenizer has no EOS token, so completions would never end; set "
                "eos_token in its tokenizer_config.json"
            )
        return self.eos_id

    def embedding_fault(self, *parts: list[int]) -> str:
        """What is wrong with ids of which the model does not embed one; else ""."""
        known = self.num_ids
        if known == len(self.tokenizer):
            return ""
        first = next((i for ids in parts for i in ids if i >= known), None)
        if first is None:
            return ""
        return (
            f"the model has no embedding for "
            f"{self.tokenizer.convert_ids_to_tokens(first)} (id {first}; its "
            f"embeddings end at {known - 1}): remove it from the text"
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens stripped."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def has_ended(self, ids: Sequence[int]) -> bool:
        """Whether a completion came to its end, or was cut."""
        return bool(ids) and ids[-1] in self.eos_ids

    def completion_texts(
        self, prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]
    ) -> list[str]:
        """Each completion's text, special tokens stripped.

        Read behind its prompt, so that prompt + completion is the whole text: some
        tokenizers drop a leading space from ids that are decoded alone.
        """
        head = self.decode(prompt_ids)
        texts = []
        for ids in completions:
            whole = self.decode([*prompt_ids, *ids])
            follows = whole.startswith(head)
            texts.append(whole[len(head) :] if follows else self.decode(ids))
        return texts


def make_codec(
    model: ModelConfig | None,
    tokenizer: Any,
    data: DataConfig,
    date: datetime.date | None = None,
) -> TextCodec:
    """Returns the codec of a model for data that are written and cut as ``data`` says.

    Args:
      model: None: of a tokenizer without a model, which embeds all that it knows.
      date: see ``TextCodec``; None: today.
    """
    return TextCodec(
        tokenizer=tokenizer,
        num_embeddings=len(tokenizer) if model is None else model.vocab_size,
        eos_ids=find_eos_ids(model, tokenizer),
        chat=data.chat,
        date=today() if date is None else date,
        max_prompt_length=data.max_prompt_length,
        max_completion_length=data.max_completion_length,
        truncate_prompt=data.truncate_prompt,
    )


def find_eos_ids(model: ModelConfig | None, tokenizer: Any) -> tuple[int, ...]:
    """Returns every id that ends a completion: the model's, then the tokenizer's."""
    ids = () if model is None else model.eos_ids
    eos = getattr(tokenizer, "eos_token_id", None)
    return tuple(dict.fromkeys(ids if eos is None else (*ids, eos)))
