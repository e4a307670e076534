"""A reward model as a scorer: texts in, rewards out."""

import datetime
import functools
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from tpmm_jax.data.answer_tokens import encode_answers
from tpmm_jax.data.codec import TextCodec, make_codec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.messages import Message, Written, as_messages
from tpmm_jax.data.prompts import parse_prompt
from tpmm_jax.errors import BadInput
from tpmm_jax.scoring.row_rewards import row_key, row_rewards
from tpmm_jax.store.fingerprint import digest, fingerprint, layout
from tpmm_jax.weights.source import Model

# Rewards that are kept: some ten megabytes.
CACHED = 100_000


@dataclass(frozen=True, eq=False)
class RewardScorer:
    """Rates answers with a reward model.

    Prompts and answers are written with the model's own chat template and read by its
    own tokenizer. A row's reward depends on the row alone.

    >>> scorer = RewardScorer(tpmm.load_reward("my-reward-model"))
    >>> scorer(["The film was"], [[" wonderful.", " awful."]]).shape
    (1, 2)

    Attributes:
      model: of ``load_reward``, on the mesh that it was loaded on.
      batch_size: rows that are read at once.
      chat: True: a text is a user's message. False: the model knows texts alone, and
        conversations are refused. None: texts are read to the letter, conversations
        with the chat template.
      date: the day that a chat template writes; None: today.
      cached: how many rows' rewards are kept, the last used.

    Raises:
      BadInput: not a reward model, no tokenizer, no EOS, or no chat template where one
        is needed.
    """

    model: Model
    batch_size: int = 16
    chat: bool | None = None
    date: datetime.date | None = None
    cached: int = CACHED
    _known: OrderedDict[bytes, float] = field(
        default_factory=OrderedDict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.model.config.output != "reward":
            raise BadInput(
                f"{self.name} is a causal language model, which has no reward head; "
                "wanted what load_reward returns"
            )
        if self.model.tokenizer is None:
            raise BadInput(
                f"{self.name} has no tokenizer, with which it would read the answers; "
                "put tokenizer.json and tokenizer_config.json into its directory"
            )
        if self.batch_size < 1:
            raise BadInput(f"batch_size is {self.batch_size}; use at least 1")
        self._codec(bool(self.chat)).require_eos()

    @property
    def name(self) -> str:
        """Where the model came from, for messages."""
        return str(self.model.origin.get("source", "the reward model"))

    @functools.cached_property
    def digest(self) -> str:
        """A SHA-256 of weights, architecture, tokenizer and chat template."""
        params = self.model.params
        extra = {
            "layout": layout(params),
            "config": repr(self.model.config),
            "texts": self._codec(False).digest,
        }
        return digest(fingerprint(params), extra)

    def __call__(
        self,
        prompts: Sequence[Any],
        responses: Sequence[Sequence[str]],
        ended: Sequence[Sequence[bool]] | None = None,
    ) -> Float64[np.ndarray, "B R"]:
        """Returns rewards.

        Args:
          prompts: B texts or message lists.
          responses: of each prompt R answers, as texts.
          ended: whether each answer came to its end; one that was cut is read without
            EOS. None: all of them did.

        Raises:
          BadInput: a prompt that cannot be written, a row that is longer than the
            model's context, or a reward that is not finite; names it.
        """
        sizes = {len(some) for some in responses}
        if len(prompts) != len(responses) or len(sizes) > 1:
            raise BadInput(
                f"{len(prompts)} prompts with {sorted(sizes)} responses; wanted as "
                "many responses for each prompt"
            )
        if not prompts or sizes == {0}:
            return np.zeros((len(prompts), sum(sizes)))
        if ended is None:
            ended = [[True] * len(some) for some in responses]
        rows = [ids for some in self.encode(prompts, responses, ended) for ids in some]
        R = max(sizes)
        for place, ids in enumerate(rows):
            if len(ids) > self.model.config.max_positions:
                raise BadInput(
                    f"{self.name}: prompt {place // R} with response {place % R} has "
                    f"{len(ids)} tokens, the reward model has "
                    f"{self.model.config.max_positions} positions; give shorter "
                    "prompts, draw shorter answers, or use a model of a longer context"
                )
        rewards = self._rewards(rows)
        if not np.isfinite(rewards).all():
            b, r = divmod(int(np.argmin(np.isfinite(rewards))), R)
            raise BadInput(
                f"{self.name} gives response {r} of prompt {b} the reward "
                f"{rewards[b * R + r]}; its weights are damaged, or too large for "
                f"{self.model.decoder.compute_dtype}"
            )
        return rewards.reshape(len(prompts), R)

    def encode(
        self,
        prompts: Sequence[Any],
        responses: Sequence[Sequence[str]],
        ended: Sequence[Sequence[bool]],
    ) -> list[list[list[int]]]:
        """Returns the ids of each prompt with each of its responses."""
        contents = [self._content(b, prompt) for b, prompt in enumerate(prompts)]
        found: dict[int, list[list[int]]] = {}
        for chat in (False, True):
            places = [b for b, x in enumerate(contents) if isinstance(x, tuple) == chat]
            if not places:
                continue
            parts = [[some[b] for b in places] for some in (contents, responses, ended)]
            try:
                rows = encode_answers(self._codec(chat), *parts)  # type: ignore[arg-type]
            except BadInput as error:
                raise type(error)(f"{self.name}: {error}") from None
            found |= dict(zip(places, rows))
        return [found[b] for b in range(len(contents))]

    def check_context(self, prompts: Sequence[Any], new_tokens: int) -> None:
        """Refuses prompts for which an answer may be longer than the context.

        Args:
          prompts: texts or message lists.
          new_tokens: that an answer may have.

        Raises:
          BadInput: names the longest.
        """
        limit = self.model.config.max_positions
        empty = [[""] for _ in prompts]
        ids = self.encode(prompts, empty, [[False] for _ in prompts])
        longest = max(range(len(ids)), key=lambda b: len(ids[b][0]))
        length = len(ids[longest][0])
        if length + new_tokens > limit:
            raise BadInput(
                f"{self.name} has {limit} positions, and its rows would have up to "
                f"{length + new_tokens} tokens: a prompt of {length} and an answer of "
                f"{new_tokens}. Use a reward model of a longer context, shorter "
                "prompts, or a lower rollout.max_new_tokens"
            )

    def _codec(self, chat: bool) -> TextCodec:
        data = DataConfig(
            chat=chat, max_prompt_length=sys.maxsize, max_completion_length=sys.maxsize
        )
        config, tokenizer = self.model.config, self.model.tokenizer
        return make_codec(config, tokenizer, data, self.date)

    def _content(self, number: int, prompt: Any) -> Written:
        """A prompt as a text or messages."""
        if isinstance(prompt, tuple) and prompt and isinstance(prompt[0], Message):
            content: Any = prompt
        else:
            content, faults = parse_prompt(prompt, "prompt")
            if faults or not all(isinstance(x, str | Message) for x in content):
                fault = "; ".join(faults) or "token ids; wanted a text or messages"
                raise BadInput(f"prompt {number}: {fault}")
        if self.chat is False and not isinstance(content, str):
            raise BadInput(
                f"{self.name} was trained on texts without a chat template; a "
                f"conversation cannot be written for it (prompt {number})"
            )
        return as_messages(content, "user") if self.chat else content

    def _rewards(self, rows: Sequence[list[int]]) -> np.ndarray:
        """Returns the reward of each row of ids, float64."""
        keys = [row_key(ids) for ids in rows]
        missing = {k: ids for k, ids in zip(keys, rows) if k not in self._known}
        computed = row_rewards(
            self.model.decoder,
            self.model.params,
            list(missing.values()),
            batch_size=self.batch_size,
        )
        new = dict(zip(missing, computed.tolist()))
        found = [new[k] if k in new else self._known[k] for k in keys]
        for key, reward in zip(keys, found):
            self._known[key] = reward
            self._known.move_to_end(key)
        while len(self._known) > self.cached:
            self._known.popitem(last=False)
        return np.asarray(found, np.float64)


def refuse_not_finite(
    model: Model,
    what: str = "the reward model",
    so: str = "its rewards mean nothing",
) -> None:
    """Raises BadInput if a weight is inf or nan, and names it.

    Args:
      what: the model, for the message.
      so: what follows from it, for the message.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        if not bool(jnp.isfinite(leaf).all()):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise BadInput(
                f"{model.origin.get('source', what)}: {name} holds inf or nan, so "
                f"{so}; take an earlier checkpoint"
            )
