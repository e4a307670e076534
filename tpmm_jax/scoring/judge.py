"""A language model as a judge: two answers in, a verdict in words out."""

import datetime
import functools
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from tpmm_jax.data.codec import TextCodec, make_codec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.messages import Message, Written, parse_content
from tpmm_jax.data.prompt_tokens import encode_prompts
from tpmm_jax.errors import BadInput, Stopped
from tpmm_jax.hosts import asked_all
from tpmm_jax.rewards import Verdicts
from tpmm_jax.sampling import generate_batches
from tpmm_jax.scoring.judge_config import (
    JudgeConfig,
    ask,
    read_template,
    read_verdict,
)
from tpmm_jax.scoring.row_rewards import padded_length, row_key
from tpmm_jax.store.fingerprint import digest, fingerprint, layout
from tpmm_jax.weights.source import Model

# Replies that are kept: some megabytes where they are short.
CACHED = 20_000


@dataclass(frozen=True, eq=False)
class ModelJudge:
    """Asks a model which of two answers is better, and reads its reply.

    Replies are greedy, and depend on the question alone.

    >>> judge = ModelJudge(tpmm.load("my-model"))
    >>> judge(["Say hello."], ["Hello!"], ["No."]).replies  # doctest: +SKIP
    ['A']

    Attributes:
      model: of ``load``, on the mesh that it was loaded on.
      config: how it is asked and read.
      date: the day that a chat template writes; None: today.
      cached: how many replies are kept, the last used.

    Raises:
      BadInput: a reward model, no tokenizer, or no chat template where one is needed.
    """

    model: Model
    config: JudgeConfig = field(default_factory=JudgeConfig)
    date: datetime.date | None = None
    cached: int = CACHED
    _known: OrderedDict[bytes, str] = field(
        default_factory=OrderedDict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.model.config.output != "tokens":
            raise BadInput(
                f"{self.name} is a reward model, which writes nothing; wanted a causal "
                "language model"
            )
        if self.model.tokenizer is None:
            raise BadInput(
                f"{self.name} has no tokenizer, with which it would read the answers; "
                "put tokenizer.json and tokenizer_config.json into its directory"
            )
        self.encode([""], [""], [""])

    @property
    def name(self) -> str:
        """Where the model came from, for messages."""
        return str(self.model.origin.get("source", "the judge"))

    @functools.cached_property
    def template(self) -> str:
        """The question with its places."""
        return read_template(self.config)

    @functools.cached_property
    def codec(self) -> TextCodec:
        """What writes its questions and reads its replies."""
        tokenizer, chat = self.model.tokenizer, self.config.chat
        if chat is None:
            chat = bool(getattr(tokenizer, "chat_template", None))
        data = DataConfig(chat=chat, max_prompt_length=sys.maxsize)
        return make_codec(self.model.config, tokenizer, data, self.date)

    @functools.cached_property
    def digest(self) -> str:
        """A SHA-256 of weights, architecture, tokenizer, question and reading."""
        params, config = self.model.params, self.config
        extra = {
            "layout": layout(params),
            "config": repr(self.model.config),
            "texts": self.codec.digest,
            "asked": [self.template, self.codec.chat, config.max_new_tokens],
            "read": [list(config.first), list(config.second), list(config.tie)],
        }
        return digest(fingerprint(params), extra)

    def __call__(
        self, prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]
    ) -> Verdicts:
        """Returns a verdict on each pair of answers.

        Args:
          prompts: B texts or conversations.
          first, second: B answers each.

        Raises:
          BadInput: a question that is longer than the model's context; names it.
          Stopped: a signal came while it was asked.
        """
        rows = self.encode(prompts, first, second)
        limit = self.model.config.max_positions - self.config.max_new_tokens
        for place, ids in enumerate(rows):
            if len(ids) > limit:
                raise BadInput(
                    f"{self.name}: the question about prompt {place} and its two "
                    f"answers has {len(ids)} tokens, and the judge has room for "
                    f"{limit} ({self.model.config.max_positions} positions minus "
                    f"judge.max_new_tokens = {self.config.max_new_tokens}); draw "
                    "shorter answers, or use a judge of a longer context"
                )
        replies = self._replies(rows)
        read = [read_verdict(self.config, reply) for reply in replies]
        return Verdicts(
            share_B=np.asarray([0.5 if x is None else x for x in read], np.float64),
            unread_B=np.asarray([x is None for x in read], bool),
            replies=replies,
        )

    def encode(
        self, prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]
    ) -> list[list[int]]:
        """Returns the ids of each question."""
        texts = [
            ask(self.template, as_text(prompt), one, other)
            for prompt, one, other in zip(prompts, first, second, strict=True)
        ]
        # As a message, so that no answer that looks like a transcript becomes turns.
        questions: list[Written] = (
            [(Message("user", text),) for text in texts]
            if self.codec.chat
            else list(texts)
        )
        try:
            encoded = encode_prompts(self.codec, questions)
        except BadInput as error:
            raise type(error)(f"{self.name}: {error}") from None
        return [one.ids for one in encoded]

    def check_context(self, prompts: Sequence[Any], new_tokens: int) -> None:
        """Refuses prompts for which a question may be longer than the context.

        Args:
          prompts: texts or conversations.
          new_tokens: that an answer may have.

        Raises:
          BadInput: names the longest.
        """
        limit, reply = self.model.config.max_positions, self.config.max_new_tokens
        empty = [""] * len(prompts)
        question = max(map(len, self.encode(prompts, empty, empty)), default=0)
        if (length := question + 2 * new_tokens + reply) > limit:
            raise BadInput(
                f"{self.name} has {limit} positions, and judging would take up to "
                f"{length} tokens: a question of {question} without its answers, two "
                f"answers of {new_tokens} and a reply of {reply}. Use a judge of a "
                "longer context, shorter prompts, a shorter judge.template, or a lower "
                "max_new_tokens"
            )

    def _replies(self, rows: Sequence[list[int]]) -> list[str]:
        """Returns the reply to each row of ids."""
        keys = [row_key(ids) for ids in rows]
        missing = {k: ids for k, ids in zip(keys, rows) if k not in self._known}
        new = dict(zip(missing, self._ask(list(missing.values()))))
        found = [new[k] if k in new else self._known[k] for k in keys]
        for key, reply in zip(keys, found):
            self._known[key] = reply
            self._known.move_to_end(key)
        # Whoever asked may ask about all of them again.
        while len(self._known) > max(self.cached, len(keys)):
            self._known.popitem(last=False)
        return found

    def _ask(self, rows: Sequence[list[int]]) -> list[str]:
        """Returns what the model says to each row.

        What a row is padded to depends on the row alone, and batches are always of one
        size, so that the same program reads it whatever else is asked.
        """
        decoder, size = self.model.decoder, self.config.batch_size
        limit = decoder.config.max_positions - self.config.max_new_tokens
        groups: dict[int, list[int]] = {}
        for place, ids in enumerate(rows):
            length = padded_length(len(ids), limit)
            groups.setdefault(length, []).append(place)
        replies = [""] * len(rows)
        for length, group in sorted(groups.items()):
            filled = group + [group[-1]] * (-len(group) % size)
            batches = generate_batches(
                decoder,
                self.model.params,
                [rows[place] for place in filled],
                key=jax.random.key(0),
                config=self.config.sampling,
                eos_ids=self.codec.eos_ids,
                num_ids=self.codec.num_drawn,
                batch_size=size,
                length=length,
                pad_id=self.codec.pad_id,
            )
            for places, completions in batches:
                for i, words in zip(places, completions):
                    place = filled[i]
                    replies[place] = self.codec.completion_texts(rows[place], words)[0]
                if (signal := asked_all()) is not None:
                    raise Stopped(f"stopped by {signal}")
        return replies


def as_text(prompt: Any) -> str:
    """Returns a prompt as one text: of several messages a line for each.

    Raises:
      BadInput: it is neither a text nor a message list.
    """
    if isinstance(prompt, str):
        return prompt
    if not (isinstance(prompt, tuple) and prompt and isinstance(prompt[0], Message)):
        prompt, faults = parse_content(prompt, "prompt")
        if faults:
            raise BadInput("; ".join(faults))
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n".join(f"{one.role}: {one.content}" for one in prompt)
