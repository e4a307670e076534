"""Policies side by side on the same prompts, against a baseline.

Models are loaded one at a time, each once: the others first, the baseline last, which
then gives everyone's answers their log-probabilities.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.prompt_tokens import encode_prompts
from tpmm_jax.data.prompts import Prompt
from tpmm_jax.data.records import PairRow, Rollout
from tpmm_jax.data.table import even_lengths, pair_length, round_up
from tpmm_jax.errors import BadInput
from tpmm_jax.evaluation import (
    MAX_KL_PER_TOKEN,
    MAX_LENGTH_RATIO,
    Evaluated,
    watch,
)
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.answers import LazyParams, PolicyRunner, sample_answers
from tpmm_jax.loop.judging import (
    Contest,
    judge_contests,
    judge_wins,
    measure_contest,
    observe,
    preference_accuracy,
)
from tpmm_jax.loop.log_probs import ModelLogProbs, model_log_probs
from tpmm_jax.loop.prompts import MAIN, EncodedPrompts, number_prompts
from tpmm_jax.loop.run import EVALUATION
from tpmm_jax.loop.voice import Voice
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import Decoder
from tpmm_jax.rewards import Raters
from tpmm_jax.sampling import SamplingConfig
from tpmm_jax.weights.source import Source

BASELINE = "baseline"
# Different lengths that prompts with answers are padded to, at most.
LENGTHS = 4
# Answers of which log-probs are computed at once, and half as many pairs.
LOG_PROB_ROWS = 16


@dataclass(frozen=True)
class Candidate:
    """A model to compare.

    Attributes:
      number: its place, from 0.
      name: as the table shows it.
      source: what ``load`` takes.
      same_tokens: whether prompts and vocabulary are the baseline's, token by token,
        so that KL, lengths and preference accuracy can be compared.
    """

    number: int
    name: str
    source: str
    found: Source
    codec: TextCodec
    prompts: EncodedPrompts
    same_tokens: bool


@dataclass(frozen=True)
class Settings:
    """How all candidates are sampled and rated.

    Attributes:
      pairs: preference pairs in the baseline's tokens; without prompts all there is.
      consecutive: whether the candidates are one run's policies, in order.
      output: folder for rows; None: nothing is written.
    """

    sampling: SamplingConfig
    raters: Raters
    num_samples: int = 1
    seed: int = 0
    batch_size: int = 32
    pairs: Sequence[PairRow] = ()
    consecutive: bool = False
    output: pathlib.Path | None = None


def encode_for(
    codec: TextCodec, prompts: Sequence[Prompt], console: RunConsole
) -> EncodedPrompts:
    """Returns prompts in a model's tokens; says how many had to be cut."""
    encoded = encode_prompts(codec, prompts) if prompts else []
    if cut := sum(prompt.truncated for prompt in encoded):
        limit = codec.max_prompt_length
        console.warn(f"{cut} of {len(prompts)} prompts were cut to {limit} tokens")
    return number_prompts(codec, prompts, encoded, range(len(prompts)))


def compare(
    candidates: Sequence[Candidate], settings: Settings, voice: Voice
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the measures of each candidate, the first of which is the baseline.

    Also returns the warnings of the reward-hacking watch.
    """
    baseline, *others = candidates
    if not baseline.prompts.ids:
        return _compare_on_pairs(candidates, settings, voice), []
    answers: dict[str, list[Rollout]] = {}
    logps: dict[str, ModelLogProbs] = {}
    for other in others:
        _run_candidate(settings, voice, other, [other.name], answers, logps)
    same = [other.name for other in others if other.same_tokens]
    _run_candidate(settings, voice, baseline, same, answers, logps)
    contests = [
        _contest(candidate, baseline, answers, logps) for candidate in candidates
    ]
    judgements = judge_contests(
        settings.output and settings.output / "judgements.jsonl",
        contests,
        settings.raters.judges,
        batch_size=settings.batch_size,
        voice=voice,
        title="judge",
    )
    measures: list[dict[str, Any]] = []
    history: list[Evaluated] = []
    warnings: list[str] = []
    for candidate, contest in zip(candidates, contests):
        values = measure_contest(contest, judgements, candidate.codec.eos_ids)
        if candidate is baseline:
            values |= {f"kl/{BASELINE}": 0.0}
        elif settings.pairs and candidate.same_tokens:
            ours, theirs = logps[candidate.name].pairs, logps[baseline.name].pairs
            assert ours is not None and theirs is not None
            values |= preference_accuracy(settings.pairs, ours, theirs)
        head = {"name": candidate.name, "source": candidate.found.origin}
        measures.append(head | values)
        history.append(
            observe(
                candidate.name,
                contest.answers,
                judge_wins(judgements, contest.set, BASELINE),
                settings.raters.judges,
                values.get(f"kl/{BASELINE}"),
                candidate.same_tokens,
            )
        )
        path = answers_path(settings, candidate)
        found = watch(
            history,
            max_kl_per_token=MAX_KL_PER_TOKEN,
            max_length_ratio=MAX_LENGTH_RATIO,
            look_at=str(path or "its samples (--output DIR)"),
            consecutive=settings.consecutive,
        )
        warnings += [f"{candidate.name}: {text}" for text in found]
    return measures, warnings


def _compare_on_pairs(
    candidates: Sequence[Candidate], settings: Settings, voice: Voice
) -> list[dict[str, Any]]:
    """Returns each candidate's accuracy on pairs, against the first."""
    logps: list[np.ndarray] = []
    measures: list[dict[str, Any]] = []
    for candidate in candidates:
        values: dict[str, float] = {}
        if candidate.same_tokens:
            runner = _runner(settings, candidate)
            params = _lazy_params(runner, voice, candidate)
            title = f"{candidate.name}: log-probs"
            own = model_log_probs(runner, voice, params, {}, settings.pairs, title)
            assert own.pairs is not None
            logps.append(own.pairs)
            if len(logps) > 1:
                values = preference_accuracy(settings.pairs, own.pairs, logps[0])
        head = {"name": candidate.name, "source": candidate.found.origin}
        measures.append(head | values)
    return measures


def _run_candidate(
    settings: Settings,
    voice: Voice,
    candidate: Candidate,
    scored: Sequence[str],
    answers: dict[str, list[Rollout]],
    logps: dict[str, ModelLogProbs],
) -> None:
    """Adds a candidate's answers, and its log-probs of the answers of ``scored``."""
    runner, name = _runner(settings, candidate), candidate.name
    params = _lazy_params(runner, voice, candidate)
    answers[name] = _sample(settings, voice, candidate, runner, params)
    if candidate.same_tokens:
        some = {MAIN if other == name else other: answers[other] for other in scored}
        logps[name] = model_log_probs(
            runner, voice, params, some, settings.pairs, f"{name}: log-probs"
        )


def draw_pool(settings: Settings, voice: Voice, candidate: Candidate) -> list[Rollout]:
    """Returns a candidate's rated answers; those in its file are not drawn again."""
    runner = _runner(settings, candidate)
    params = _lazy_params(runner, voice, candidate)
    return _sample(settings, voice, candidate, runner, params)


def _lazy_params(
    runner: PolicyRunner, voice: Voice, candidate: Candidate
) -> LazyParams:
    def load() -> Params:
        with voice.phase(f"load {candidate.name}", 1, "models") as advance:
            params = candidate.found.read(runner.decoder, "float32")
            advance(1)
        return params

    return LazyParams(load)


def _sample(
    settings: Settings,
    voice: Voice,
    candidate: Candidate,
    runner: PolicyRunner,
    params: LazyParams,
) -> list[Rollout]:
    # The keys of a run's evaluation with that seed.
    key = jax.random.fold_in(jax.random.key(settings.seed), 0)
    return sample_answers(
        runner,
        voice,
        answers_path(settings, candidate),
        candidate.prompts,
        settings.raters,
        params=params,
        key=jax.random.fold_in(key, EVALUATION),
        num_samples=settings.num_samples,
        title=f"{candidate.name}: sample",
    )


def _runner(settings: Settings, candidate: Candidate) -> PolicyRunner:
    config = candidate.found.config
    new = settings.sampling.max_new_tokens if candidate.prompts.ids else 0
    longest = max((len(ids) for ids in candidate.prompts.ids), default=0)
    both = longest + new
    if settings.pairs and candidate.same_tokens:
        both = max(both, pair_length(settings.pairs))
    if both > config.max_positions:
        raise BadInput(
            f"{candidate.name}: a pair has {both} tokens, the model "
            f"{config.max_positions} positions; leave out longer pairs"
        )
    return PolicyRunner(
        decoder=Decoder(config, mesh=make_mesh(MeshConfig())),
        codec=candidate.codec,
        sampling=settings.sampling,
        batch_size=settings.batch_size,
        micro_batch=LOG_PROB_ROWS // 2,
        prompt_length=round_up(longest, config.max_positions - new),
        pair_lengths=even_lengths(round_up(both, config.max_positions), LENGTHS),
    )


def answers_path(settings: Settings, candidate: Candidate) -> pathlib.Path | None:
    """Where a candidate's answers are written."""
    if settings.output is None:
        return None
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", candidate.name).strip("_")
    return settings.output / f"{candidate.number:02d}-{name}.jsonl"


def _contest(
    candidate: Candidate,
    baseline: Candidate,
    answers: Mapping[str, list[Rollout]],
    logps: Mapping[str, ModelLogProbs],
) -> Contest:
    name, ratios = candidate.name, {}
    if candidate is baseline:
        return Contest(name, answers[name])
    if candidate.same_tokens:
        anchor_BR = logps[baseline.name].answers[name]
        ratios[BASELINE] = logps[name].answers[MAIN] - anchor_BR
    return Contest(name, answers[name], {BASELINE: answers[baseline.name]}, ratios)
