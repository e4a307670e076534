"""The ids of a text that follows a prompt: those it has in the joined text.

The joined text is not tokenised whole: no merge reaches across a special token, nor
across a word's beginning where no token of the vocabulary does. So the prompt's last
word, or what follows its last special token, stands for the prompt.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from tpmm_jax.data._boundary import ids_apart, text_ids

# The space of plain vocabularies, of byte-level ones, and of SentencePiece.
_SPANS_WORDS = re.compile(r"[A-Za-z][ \u0120\u2581]")
_TRIES = 8


class Joined(NamedTuple):
    """The ids that follow a prompt.

    Attributes:
      merged: tokens merged across the boundary, so that the text was tokenised apart.
    """

    ids: list[int]
    merged: bool


class Front(NamedTuple):
    """The end of a prompt that stands for all of it: its text and its ids."""

    text: str
    ids: list[int]


class Joiner:
    """Finds the ids of completions as they stand behind their prompts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self._specials = tuple(token.content for token in added if token.special)
        self._firsts = {text[0] for text in self._specials}
        self._words_part = _words_part(tokenizer)

    def fronts(
        self, prompts: Sequence[str], prompt_ids: Sequence[list[int]]
    ) -> list[Front]:
        """The end of each prompt, or all of it where the two read differently."""
        tails = [prompt[self._tail(prompt) :] for prompt in prompts]
        short = list(dict.fromkeys(tails))
        known = dict(zip(short, text_ids(self._tokenizer, short)))
        return [
            Front(tail, known[tail])
            if known[tail] and ids[-len(known[tail]) :] == known[tail]
            else Front(prompt, ids)
            for prompt, ids, tail in zip(prompts, prompt_ids, tails)
        ]

    def completions(
        self, fronts: Sequence[Front], texts: Sequence[str]
    ) -> list[Joined]:
        """The ids of each text as it follows a prompt."""
        whole = [front.text + text for front, text in zip(fronts, texts)]
        joined = text_ids(self._tokenizer, whole)
        merged = [full[: len(f.ids)] != f.ids for f, full in zip(fronts, joined)]
        left = [text for text, is_merged in zip(texts, merged) if is_merged]
        apart = iter(ids_apart(self._tokenizer, left))
        return [
            Joined(next(apart) if is_merged else full[len(front.ids) :], is_merged)
            for front, full, is_merged in zip(fronts, joined, merged)
        ]

    def holds_special(self, texts: Sequence[str]) -> bool:
        """Whether a special token is written out in one of the texts."""
        return any(special in text for text in texts for special in self._specials)

    def _tail(self, prompt: str) -> int:
        """Where the end of a prompt begins that stands for all of it."""
        at = max(
            (self._last_special(prompt, first) for first in self._firsts), default=-1
        )
        if self._words_part:
            at = max(at, _last_word(prompt, at))
        return max(at, 0)

    def _last_special(self, text: str, first: str) -> int:
        """The last special token that begins with ``first``; -1 if not near."""
        end = len(text)
        for _ in range(_TRIES):
            end = text.rfind(first, 0, end)
            if end < 0 or text.startswith(self._specials, end):
                return end
        return -1


def _last_word(text: str, start: int) -> int:
    """The last space between two ASCII letters after ``start``; -1 if not near."""
    end = len(text) - 1
    for _ in range(_TRIES):
        end = text.rfind(" ", max(start, 0), end)
        if end < 1:
            return -1
        one, other = text[end - 1], text[end + 1]
        if one.isascii() and one.isalpha() and other.isascii() and other.isalpha():
            return end
    return -1


def _words_part(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word reads the same behind another one and at a text's beginning."""
    one, other, both = text_ids(tokenizer, ["a", " b", "a b"])
    return one + other == both and not any(
        map(_SPANS_WORDS.search, tokenizer.get_vocab())
    )
