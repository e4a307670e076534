"""Answers of a policy: drawn and rated.

Nothing here knows of a run: the loop and ``python -m tpmm_jax.evaluate`` share it.
"""

import pathlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.records import Rollout
from tpmm_jax.loop.prompts import EncodedPrompts
from tpmm_jax.loop.voice import Voice
from tpmm_jax.models import Decoder
from tpmm_jax.rewards import Known, NamedScorer, Raters, rate
from tpmm_jax.sampling import SamplingConfig, generate_batches
from tpmm_jax.scoring import labelling_judge
from tpmm_jax.store.records import append_records, resume_records


class LazyParams:
    """Parameters that are read when they are first asked for, and can be let go."""

    def __init__(self, load: Callable[[], Params]):
        self._load = load
        self._params: Params | None = None

    def __call__(self) -> Params:
        if self._params is None:
            self._params = self._load()
        return self._params

    def release(self) -> None:
        """Frees them; asked for again they are read again."""
        self._params = None


@dataclass(frozen=True)
class PolicyRunner:
    """How policies of one architecture are run; their weights are handed in.

    Attributes:
      sampling: how answers are drawn.
      batch_size: prompts that are sampled at once.
      micro_batch: pairs, or half the answers, whose log-probs are computed at once.
      prompt_length: tokens that prompts are padded to.
      pair_lengths: tokens that prompts with answers are padded to, ascending: to the
        least that holds them.
    """

    decoder: Decoder
    codec: TextCodec
    sampling: SamplingConfig
    batch_size: int
    micro_batch: int
    prompt_length: int
    pair_lengths: tuple[int, ...]


def sample_answers(
    runner: PolicyRunner,
    voice: Voice,
    path: pathlib.Path | None,
    prompts: EncodedPrompts,
    raters: Raters,
    *,
    params: Callable[[], Params],
    key: jax.Array,
    num_samples: int,
    title: str,
    rated: Callable[[float], None] = lambda seconds: None,
) -> list[Rollout]:
    """Returns rated answers to each prompt.

    They are appended to ``path`` a batch at a time; those that are there already are
    read, up to the last whole batch, and not sampled again. Without a path nothing is
    written.

    Args:
      rated: called with the seconds that the raters took for a batch.
    """
    total, size = len(prompts.ids), runner.batch_size
    answers = resume_records(
        path, Rollout, lambda n: n if n == total else n // size * size
    )
    if len(answers) == total:
        return answers
    with voice.phase(title, total, "prompts", done=len(answers)) as advance:
        batches = generate_batches(
            runner.decoder,
            params(),
            prompts.ids,
            key=key,
            config=runner.sampling,
            eos_ids=runner.codec.eos_ids,
            num_ids=runner.codec.num_drawn,
            num_samples=num_samples,
            batch_size=size,
            numbers=prompts.numbers,
            start=len(answers),
            length=runner.prompt_length,
            pad_id=runner.codec.pad_id,
        )
        for places, completions in batches:
            started = time.monotonic()
            batch = _rate(runner.codec, prompts, raters, places, completions)
            rated(time.monotonic() - started)
            append_records(path, batch, len(answers))
            answers += batch
            advance(len(batch), **_mean_reward(answers))
    return answers


def _mean_reward(answers: Sequence[Rollout]) -> dict[str, str]:
    if answers[0].rewards is None:
        return {}
    return {"reward": f"{np.mean([row.rewards for row in answers]):.3f}"}


def _rate(
    codec: TextCodec,
    prompts: EncodedPrompts,
    raters: Raters,
    places: Sequence[int],
    completions: Sequence[list[list[int]]],
) -> list[Rollout]:
    """Returns the answers to a batch of prompts with what every scorer gives them."""
    texts = [prompts.texts[i] for i in places]
    responses = [
        codec.completion_texts(prompts.ids[i], ids)
        for i, ids in zip(places, completions)
    ]
    known = prompts.known(codec, places, completions)
    rewards: list[list[float]] | None = None
    spread: list[list[float]] | None = None
    if raters.scorer is not None:
        found = rate(raters.scorer, texts, responses, known)
        rewards = found.rewards_BR.tolist()
        spread = None if found.spread_BR is None else found.spread_BR.tolist()
    said = doubts(raters.scorer, known, responses)
    scores = {
        label: scorer(texts, responses, known).tolist()
        for label, scorer in raters.scorers.items()
    }
    return [
        Rollout(
            prompt=texts[b],
            responses=responses[b],
            rewards=None if rewards is None else rewards[b],
            spread=None if spread is None else spread[b],
            **said[b],
            scores={label: numbers[b] for label, numbers in scores.items()},
            held_out=prompts.held_out[i],
            prompt_ids=prompts.ids[i],
            response_ids=completions[b],
        )
        for b, i in enumerate(places)
    ]


def doubts(
    scorer: NamedScorer | None, known: Known, responses: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """Returns of each prompt what a ``Rollout`` holds of a judge that labels; else {}.

    Called after the scorer, whose replies are kept, so that nothing is asked twice.
    """
    judge = labelling_judge(scorer)
    if judge is None:
        return [{} for _ in responses]
    found = judge.shares(known.asked, responses)
    return [
        {"unread": words, "disagreed": count}
        for words, count in zip(found.unread, found.disagreed)
    ]
