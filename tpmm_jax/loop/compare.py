"""Policies side by side on the same prompts, against a baseline.

Models are loaded one at a time, each once: the others first, the baseline last, which
then weighs everyone's answers.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.data.batches import collate
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.prompt_tokens import encode_prompts
from tpmm_jax.data.prompts import Prompt
from tpmm_jax.data.records import PairRow, Rollout
from tpmm_jax.data.table import pair_length, round_up
from tpmm_jax.errors import BadInput
from tpmm_jax.evaluation import MAX_KL_PER_TOKEN, MAX_LENGTH_RATIO, measure, watch
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.answers import (
    Loaded,
    PolicyRunner,
    answer_log_probs,
    pair_log_probs,
    sample_answers,
)
from tpmm_jax.loop.evaluation import preference_accuracy, seen
from tpmm_jax.loop.judging import Match, judge_matches, judge_wins
from tpmm_jax.loop.prompts import EncodedPrompts, number_prompts
from tpmm_jax.loop.run import EVALUATION
from tpmm_jax.losses.logprobs import CHUNK_BYTES
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import Decoder
from tpmm_jax.rewards import Raters
from tpmm_jax.sampling import SamplingConfig
from tpmm_jax.weights.loading import Source

BASELINE = "baseline"
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
      pairs: preference pairs in the baseline's tokens.
      consecutive: whether the candidates are one run's policies, in order.
      output: folder for rows; None: nothing is written.
    """

    sampling: SamplingConfig
    raters: Raters
    num_samples: int = 1
    seed: int = 0
    batch_size: int = 32
    max_kl_per_token: float = MAX_KL_PER_TOKEN
    max_length_ratio: float = MAX_LENGTH_RATIO
    pairs: Sequence[PairRow] = ()
    consecutive: bool = False
    output: pathlib.Path | None = None


@dataclass
class Answered:
    """What is known of a candidate once its model has left memory."""

    rows: list[Rollout]
    own_BS: np.ndarray | None = None
    pairs_MN: np.ndarray | None = None
    log_ratios_BS: np.ndarray | None = None
    judged: Mapping[str, np.ndarray] = field(default_factory=dict)


def encode_for(
    codec: TextCodec, prompts: Sequence[Prompt], console: RunConsole
) -> EncodedPrompts:
    """Returns prompts in a model's tokens; says how many had to be cut."""
    encoded = encode_prompts(codec, prompts)
    if cut := sum(prompt.truncated for prompt in encoded):
        limit = codec.max_prompt_length
        console.warn(f"{cut} of {len(prompts)} prompts were cut to {limit} tokens")
    return number_prompts(codec, prompts, encoded)


def compare(
    candidates: Sequence[Candidate], settings: Settings, console: RunConsole
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the measures of each candidate, the first of which is the baseline.

    Also returns the warnings of the reward-hacking watch.
    """
    baseline, *others = candidates
    answered = {
        other.name: _answer(settings, other, console, weigh=other.same_tokens)
        for other in others
    }
    answered[baseline.name] = _answer_baseline(settings, candidates, answered, console)
    _judge(settings, candidates, answered, console)
    measures = [
        _measures(settings, candidate, baseline, answered) for candidate in candidates
    ]
    return measures, _warnings(settings, candidates, answered, measures)


def _answer(
    settings: Settings, candidate: Candidate, console: RunConsole, *, weigh: bool
) -> Answered:
    runner = _runner(settings, candidate, console)
    params = _loaded(runner, candidate)
    found = Answered(_rows(settings, candidate, runner, params))
    if weigh:
        title = f"{candidate.name}: log-probs"
        found.own_BS = answer_log_probs(runner, params(), found.rows, title)
        found.pairs_MN = _pair_log_probs(settings, runner, params(), candidate)
    return found


def _answer_baseline(
    settings: Settings,
    candidates: Sequence[Candidate],
    answered: Mapping[str, Answered],
    console: RunConsole,
) -> Answered:
    baseline = candidates[0]
    runner = _runner(settings, baseline, console)
    params = _loaded(runner, baseline)
    found = Answered(_rows(settings, baseline, runner, params))
    for other in candidates[1:]:
        theirs = answered[other.name]
        if theirs.own_BS is not None:
            title = f"{other.name}: log-probs of {baseline.name}"
            anchor_BS = answer_log_probs(runner, params(), theirs.rows, title)
            theirs.log_ratios_BS = theirs.own_BS - anchor_BS
    found.pairs_MN = _pair_log_probs(settings, runner, params(), baseline)
    return found


def _runner(
    settings: Settings, candidate: Candidate, console: RunConsole
) -> PolicyRunner:
    config, new = candidate.found.config, settings.sampling.max_new_tokens
    longest = max(len(ids) for ids in candidate.prompts.ids)
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
        pair_length=round_up(both, config.max_positions),
        chunk_bytes=CHUNK_BYTES,
        console=console,
    )


def _loaded(runner: PolicyRunner, candidate: Candidate) -> Loaded:
    def load() -> Params:
        with runner.console.phase(f"load {candidate.name}", 1, "models") as bar:
            params = candidate.found.read(runner.decoder, "float32")
            bar.advance(1)
        return params

    return Loaded(load)


def _rows(
    settings: Settings, candidate: Candidate, runner: PolicyRunner, params: Loaded
) -> list[Rollout]:
    path = rows_path(settings, candidate)
    # The keys of a run's evaluation with that seed.
    key = jax.random.fold_in(jax.random.key(settings.seed), 0)
    return sample_answers(
        runner,
        path,
        candidate.prompts,
        settings.raters,
        params=params,
        key=jax.random.fold_in(key, EVALUATION),
        num_samples=settings.num_samples,
        title=f"{candidate.name}: sample",
    )


def rows_path(settings: Settings, candidate: Candidate) -> pathlib.Path | None:
    """Where a candidate's answers are written."""
    if settings.output is None:
        return None
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", candidate.name).strip("_")
    return settings.output / f"{candidate.number:02d}-{name}.jsonl"


def _pair_log_probs(
    settings: Settings, runner: PolicyRunner, params: Params, candidate: Candidate
) -> np.ndarray | None:
    if not settings.pairs:
        return None
    table = collate(
        settings.pairs, length=runner.pair_length, pad_id=runner.codec.pad_id
    )
    return pair_log_probs(runner, params, table, f"{candidate.name}: held-out pairs")


def _judge(
    settings: Settings,
    candidates: Sequence[Candidate],
    answered: Mapping[str, Answered],
    console: RunConsole,
) -> None:
    baseline, *others = candidates
    if not settings.raters.judges or not others:
        return
    theirs = answered[baseline.name].rows
    rows = judge_matches(
        None if settings.output is None else settings.output / "judgements.jsonl",
        [Match(o.name, BASELINE, answered[o.name].rows, theirs) for o in others],
        settings.raters.judges,
        batch_size=settings.batch_size,
        console=console,
        check=lambda: None,
        title="judge",
    )
    for other in others:
        found = judge_wins(rows, other.name)
        answered[other.name].judged = {label: x for (label, _), x in found.items()}


def _measures(
    settings: Settings,
    candidate: Candidate,
    baseline: Candidate,
    answered: Mapping[str, Answered],
) -> dict[str, Any]:
    ours = answered[candidate.name]
    head = {"name": candidate.name, "source": candidate.found.origin}
    if candidate is baseline:
        return head | measure(ours.rows) | {f"kl/{BASELINE}": 0.0}
    theirs, ratios = answered[baseline.name], ours.log_ratios_BS
    values = measure(
        ours.rows,
        opponents={BASELINE: theirs.rows},
        log_ratios={} if ratios is None else {BASELINE: ratios},
        judged={(label, BASELINE): x for label, x in ours.judged.items()},
    )
    if ours.pairs_MN is not None and theirs.pairs_MN is not None:
        values |= preference_accuracy(settings.pairs, ours.pairs_MN, theirs.pairs_MN)
    return head | values


def _warnings(
    settings: Settings,
    candidates: Sequence[Candidate],
    answered: Mapping[str, Answered],
    measures: Sequence[Mapping[str, Any]],
) -> list[str]:
    history, found = [], []
    for candidate, values in zip(candidates, measures):
        ours, name = answered[candidate.name], candidate.name
        kl, judges = values.get(f"kl/{BASELINE}"), settings.raters.judges
        history.append(
            seen(name, ours.rows, ours.judged, judges, kl, candidate.same_tokens)
        )
        warnings = watch(
            history,
            max_kl_per_token=settings.max_kl_per_token,
            max_length_ratio=settings.max_length_ratio,
            look_at=str(rows_path(settings, candidate) or "its samples (--output DIR)"),
            consecutive=settings.consecutive,
        )
        found += [f"{name}: {text}" for text in warnings]
    return found
