"""Pairs of scored answers: of one prompt, or of texts that have none."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tpmm_jax.data.checks import Key, content_key, digest_key, fold
from tpmm_jax.data.pairs import PreferencePair
from tpmm_jax.data.problems import Place, place_of
from tpmm_jax.data.ratings import Scored
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.reward_config import RewardDataConfig

_COUNTED = (
    "repeated_answers",
    "equal_scores",
    "below_min_margin",
    "identical_tokens",
    "without_partner",
)


class Choice(NamedTuple):
    """Two answers, the better one first, and the group that they belong to."""

    better: Scored
    worse: Scored
    group: str

    @property
    def margin(self) -> float:
        """By how much the better one's score is higher."""
        return self.better.score - self.worse.score


def prompt_key(answer: Scored) -> Key:
    """What answers have in common that belong on one side of a split.

    The prompt's content, without case and white space; of a text without one its own.
    """
    return fold(content_key(answer.prompt or answer.answer))


def pair_up(
    answers: Sequence[Scored], data: RewardDataConfig, seed: Sequence[int]
) -> tuple[list[Choice], Counter[str]]:
    """Pairs of different scores, the better answer first; and what made none.

    Args:
      seed: of the groups that texts without prompts are drawn into.
    """
    counts = Counter[str](dict.fromkeys(_COUNTED, 0))
    choices: list[Choice] = []
    for group, members in _groups(answers, data.pairs_per_text, seed):
        some = _distinct(members, counts)
        if len(some) < 2:
            counts["without_partner"] += len(some)
            continue
        some.sort(key=lambda answer: -answer.score)
        pairs = list(itertools.combinations(some, 2))
        if data.scored_pairs == "best_worst":
            lowest = next(x for x in some if x.score == some[-1].score)
            pairs = [(some[0], lowest)]
        for better, worse in pairs:
            choice = Choice(better, worse, group)
            if not choice.margin > 0:
                counts["equal_scores"] += 1
            elif choice.margin < data.min_margin:
                counts["below_min_margin"] += 1
            else:
                choices.append(choice)
    return choices, counts


def as_rows(
    choices: Sequence[Choice], ids: Mapping[str, PairRow], counts: Counter[str]
) -> list[PairRow]:
    """The pairs as token ids.

    Args:
      ids: by an answer's origin: its prompt's ids, and its own as ``chosen_ids``.
      counts: where pairs of equal tokens are counted, which are left out.
    """
    rows = []
    for better, worse, group in choices:
        one, other = ids[better.origin], ids[worse.origin]
        if one.chosen_ids == other.chosen_ids:
            counts["identical_tokens"] += 1
            continue
        place = place_of(better.origin)
        origin = Place(
            f"{place} over {worse.origin}", place.file, place.line, place.row
        )
        margin = better.score - worse.score
        sides = one.chosen_ids, other.chosen_ids
        pair = as_pair(better, worse)
        rows.append(PairRow(one.prompt_ids, *sides, origin, margin, group, pair))
    return rows


def as_pair(better: Scored, worse: Scored) -> PreferencePair:
    """Two answers to one prompt, the better one chosen."""
    return PreferencePair(
        better.prompt,
        better.answer,
        worse.answer,
        better.origin,
        margin=better.score - worse.score,
    )


def _groups(
    answers: Sequence[Scored], pairs_per_text: int, seed: Sequence[int]
) -> Iterator[tuple[str, list[Scored]]]:
    """The groups within which answers are compared, each with its name."""
    by_prompt: dict[tuple[str, Key], list[Scored]] = {}
    for answer in answers:
        if answer.prompt:
            by_prompt.setdefault((answer.unit, prompt_key(answer)), []).append(answer)
    for (_, key), members in by_prompt.items():
        yield digest_key(key), members
    alone: dict[Key, list[Scored]] = {}
    for answer in answers:
        if not answer.prompt:
            alone.setdefault(prompt_key(answer), []).append(answer)
    # One text with several ratings stays together, and is no pair with itself.
    order = np.random.default_rng(list(seed)).permutation(len(alone))
    texts = list(alone.items())
    size = pairs_per_text + 1
    for start in range(0, len(texts), size):
        some = [texts[place] for place in order[start : start + size]]
        keys = tuple(sorted(str(key) for key, _ in some))
        yield digest_key(keys), [answer for _, members in some for answer in members]


def _distinct(members: Sequence[Scored], counts: Counter[str]) -> list[Scored]:
    """Answers without those that repeat another one with the same score."""
    known: dict[tuple[Key, float], Scored] = {}
    for answer in members:
        known.setdefault((content_key(answer.answer), answer.score), answer)
    counts["repeated_answers"] += len(members) - len(known)
    return list(known.values())
