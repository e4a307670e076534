"""Answers of a policy: drawn, rated, and their log-probabilities.

Nothing here knows of a run: the loop and ``python -m tpmm_jax.evaluate`` share it.
"""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.records import Rollout
from tpmm_jax.data.table import Table, take
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.prompts import EncodedPrompts
from tpmm_jax.mesh import put_batch
from tpmm_jax.models import Decoder
from tpmm_jax.rewards import Raters
from tpmm_jax.sampling import SamplingConfig, generate_batches
from tpmm_jax.steps import pair_log_probs_step, token_log_probs_step
from tpmm_jax.store.records import append_records, resume_records


def _go_on() -> None:
    """No one asks to stop."""


class Loaded:
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
      prompt_length, pair_length: tokens that prompts, and prompts with answers, are
        padded to.
      check: called between batches; raises where the work is to stop.
    """

    decoder: Decoder
    codec: TextCodec
    sampling: SamplingConfig
    batch_size: int
    micro_batch: int
    prompt_length: int
    pair_length: int
    chunk_bytes: int
    console: RunConsole
    check: Callable[[], None] = _go_on


def sample_answers(
    runner: PolicyRunner,
    path: pathlib.Path | None,
    prompts: EncodedPrompts,
    raters: Raters,
    *,
    params: Callable[[], Params],
    key: jax.Array,
    num_samples: int,
    title: str,
) -> list[Rollout]:
    """Returns rated answers to each prompt.

    They are appended to ``path`` a batch at a time; those that are there already are
    read, up to the last whole batch, and not sampled again. Without a path nothing is
    written.
    """
    total, size = len(prompts.ids), runner.batch_size
    answers = resume_records(
        path, Rollout, lambda n: n if n == total else n // size * size
    )
    if len(answers) == total:
        return answers
    with runner.console.phase(title, total, "prompts") as bar:
        bar.advance(len(answers))
        for batch in sample_and_rate(
            runner,
            params(),
            prompts,
            raters,
            key=key,
            num_samples=num_samples,
            start=len(answers),
        ):
            append_records(path, batch)
            answers += batch
            bar.advance(len(batch), **_mean_reward(answers))
            runner.check()
    return answers


def _mean_reward(answers: Sequence[Rollout]) -> dict[str, str]:
    if answers[0].rewards is None:
        return {}
    return {"reward": f"{np.mean([row.rewards for row in answers]):.3f}"}


def sample_and_rate(
    runner: PolicyRunner,
    params: Params,
    prompts: EncodedPrompts,
    raters: Raters,
    *,
    key: jax.Array,
    num_samples: int,
    start: int,
) -> Iterator[list[Rollout]]:
    """Yields rated answers, a batch of prompts at a time."""
    batches = generate_batches(
        runner.decoder,
        params,
        prompts.ids,
        key=key,
        config=runner.sampling,
        eos_ids=runner.codec.eos_ids,
        num_samples=num_samples,
        batch_size=runner.batch_size,
        numbers=prompts.numbers,
        start=start,
        length=runner.prompt_length,
        pad_id=runner.codec.pad_id,
    )
    for places, completions in batches:
        texts = [prompts.texts[i] for i in places]
        responses = [
            runner.codec.completion_texts(prompts.ids[i], ids)
            for i, ids in zip(places, completions)
        ]
        scorer = raters.scorer
        rewards = None if scorer is None else scorer(texts, responses).tolist()
        scores = {
            label: scorer(texts, responses).tolist()
            for label, scorer in raters.scorers.items()
        }
        yield [
            Rollout(
                prompt=texts[b],
                responses=responses[b],
                rewards=None if rewards is None else rewards[b],
                scores={label: found[b] for label, found in scores.items()},
                held_out=prompts.held_out[i],
                prompt_ids=prompts.ids[i],
                response_ids=completions[b],
            )
            for b, i in enumerate(places)
        ]


def answer_log_probs(
    runner: PolicyRunner, params: Params, answers: Sequence[Rollout], title: str
) -> np.ndarray:
    """Returns log p(answer | prompt), nats, of every sample of every row, [B, S]."""
    both = [(r.prompt_ids, ids) for r in answers for ids in r.response_ids]
    size, out = 2 * runner.micro_batch, []
    with runner.console.phase(title, len(both), "answers") as bar:
        for first in range(0, len(both), size):
            some = both[first : first + size]
            logp = _log_probs(runner, params, some, size)
            out.append(logp[: len(some)])
            bar.advance(len(some))
            runner.check()
    return np.concatenate(out).reshape(len(answers), -1)


def _log_probs(
    runner: PolicyRunner, params: Params, some: Sequence[tuple], size: int
) -> np.ndarray:
    tokens_BT = np.full((size, runner.pair_length), runner.codec.pad_id, np.int32)
    mask_BT, of_answer_BT = np.zeros_like(tokens_BT), np.zeros_like(tokens_BT)
    for b, (prompt, ids) in enumerate(some):
        end = len(prompt) + len(ids)
        tokens_BT[b, :end] = [*prompt, *ids]
        mask_BT[b, :end] = 1
        of_answer_BT[b, len(prompt) : end] = 1
    batch = put_batch((tokens_BT, mask_BT), runner.decoder.mesh)
    logp_BT = token_log_probs_step(
        runner.decoder, params, *batch, chunk_bytes=runner.chunk_bytes
    )
    return (np.asarray(logp_BT, np.float64) * of_answer_BT[:, 1:]).sum(axis=1)


def pair_log_probs(
    runner: PolicyRunner,
    params: Params,
    table: Table,
    title: str,
    ld_alpha: float | None = None,
) -> np.ndarray:
    """Returns log p(completion | prompt) of every pair, float32 [M, N] nats.

    Args:
      ld_alpha: weight of tokens beyond the shorter completion's length; None: 1.
    """
    with runner.console.phase(title, len(table["weight_B"]), "pairs") as bar:

        def advance(count: int) -> None:
            bar.advance(count)
            runner.check()

        return batched_log_probs(
            runner.decoder,
            params,
            table,
            size=runner.micro_batch,
            chunk_bytes=runner.chunk_bytes,
            ld_alpha=ld_alpha,
            advance=advance,
        )


def batched_log_probs(
    decoder: Decoder,
    params: Params,
    table: Table,
    *,
    size: int,
    chunk_bytes: int,
    ld_alpha: float | None = None,
    advance: Callable[[int], None],
) -> np.ndarray:
    """Returns log p(completion | prompt) of every pair, float32 [M, N] nats.

    Args:
      size: pairs at once.
      ld_alpha: weight of tokens beyond the shorter completion's length; None: 1.
      advance: called with the number of pairs that were done.
    """
    rows, out = len(table["weight_B"]), []
    for start in range(0, rows, size):
        places = np.arange(start, min(start + size, rows))
        batch = put_batch(take(table, places, size), decoder.mesh)
        logps_BN = pair_log_probs_step(
            decoder, params, batch, chunk_bytes=chunk_bytes, ld_alpha=ld_alpha
        )
        out.append(np.asarray(logps_BN)[: len(places)])
        advance(len(places))
    return np.concatenate(out)
