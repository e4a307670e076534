"""Rates stored answers again, once a scorer or judge was edited.

Evaluations and the unfinished iteration's answers get the numbers of the raters as they
are now. Finished iterations keep the pairs that they trained on. What is to be done is
in raters.json until all of it is done, so that a stop in between does no harm.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.records import Judgement, Rollout
from tpmm_jax.loop.agreement import NAME as AGREEMENT_LOGPS
from tpmm_jax.loop.answers import LazyParams, doubts
from tpmm_jax.loop.evaluation import (
    SUMMARY,
    answers_path,
    finish,
    met_by_mean,
    opponents,
    sample_sets,
    summarise,
)
from tpmm_jax.loop.held_out import NAME as HELD_OUT_LOGPS
from tpmm_jax.loop.judging import Contest, judge_contests
from tpmm_jax.loop.margins import CALIBRATION
from tpmm_jax.loop.prompts import SHIPPED, EncodedPrompts
from tpmm_jax.loop.raters_record import (
    ANSWERS,
    JUDGEMENTS,
    RatersRecord,
    rated_iterations,
    read_record,
    write_record,
)
from tpmm_jax.loop.reference import PROGRESS
from tpmm_jax.loop.rollouts import read_pairs
from tpmm_jax.loop.run import Disk, Plan
from tpmm_jax.loop.shipping import rated_prompts
from tpmm_jax.loop.voice import Voice
from tpmm_jax.rewards import (
    JUDGES,
    LABEL,
    MARGINS,
    SCORER,
    SCORERS,
    NamedJudge,
    NamedScorer,
    Rating,
    rate,
)
from tpmm_jax.scoring import measures
from tpmm_jax.store.digests import remove_listed
from tpmm_jax.store.records import read_records, resume_records, write_records
from tpmm_jax.weights.kept import SHIP

# What an iteration derives from its answers' rewards, before its policy is stored.
_DERIVED = (
    *("pairs.jsonl", "reference.json", "reference_logps.npz"),
    *(HELD_OUT_LOGPS, AGREEMENT_LOGPS, PROGRESS),
)


def rescore(plan: Plan, disk: Disk, voice: Voice) -> bool:
    """Does what raters.json says is to be rated again; returns whether there was any.

    Raises:
      Stopped: it goes on at the next start.
    """
    record = read_record(disk.workdir, plan.config.rollout.batch_size)
    if not record.rescoring:
        return False
    scorers, judges = _edited_raters(plan, record)
    measured = {k: one for k, one in scorers.items() if measures(one)}
    if measured:
        _rate_evaluations(plan, disk, voice, record, measured)
    steps = disk.trajectory.steps()
    for t in steps if judges else []:
        # They are read, or drawn again where a kill came while a file was replaced.
        policy = LazyParams(functools.partial(disk.policy, t))
        answers = sample_sets(plan, disk, voice, t, policy)
        if (disk.folder(t) / JUDGEMENTS).exists():
            size = record.size(JUDGEMENTS, t)
            _judge_again(disk, voice, t, answers, judges, size)
    if SCORER in scorers and plan.pair_chunks is None:
        _label_again(plan, disk, voice, max(steps) + 1, {SCORER: scorers[SCORER]})
        record = replace(record, earlier_labels=max(steps))
        # Before the summaries, which say so.
        write_record(disk.workdir, record)
    if MARGINS in record.rescoring and plan.raters.margins is not None:
        coming = max(steps) + 1
        _label_again(plan, disk, voice, coming, {LABEL: plan.raters.margins})
        if coming == 1:
            remove_listed(disk.workdir / CALIBRATION)
        record = replace(record, earlier_margins=max(steps))
    for t in steps:
        remove_listed(disk.folder(t) / SUMMARY)
        remove_listed(disk.folder(t) / SHIP)
    for t in steps:
        pairs = read_pairs(disk, t) if t else None
        finish(disk, t, summarise(plan, disk, voice, t, pairs))
    write_record(disk.workdir, replace(record, rescoring=()))
    return True


def _edited_raters(
    plan: Plan, record: RatersRecord
) -> tuple[dict[str, NamedScorer], dict[str, NamedJudge]]:
    """Returns by field the scorers, and by label the judges, that rate again."""
    raters, fields = plan.raters, record.rescoring
    scorers = {SCORERS + label: one for label, one in raters.scorers.items()}
    if raters.scorer is not None:
        scorers[SCORER] = raters.scorer
    judges = {k: one for k, one in raters.judges.items() if JUDGES + k in fields}
    return {k: one for k, one in scorers.items() if k in fields}, judges


def _rate_evaluations(
    plan: Plan,
    disk: Disk,
    voice: Voice,
    record: RatersRecord,
    scorers: Mapping[str, NamedScorer],
) -> None:
    assert plan.schedule is not None
    codec = plan.runner.codec
    files = [
        (path, prompts, record.size(ANSWERS, t))
        for t in rated_iterations(disk.workdir, ANSWERS)
        for name, prompts in ({**plan.schedule.sets} | rated_prompts(plan, t)).items()
        if (path := answers_path(disk, t, name)).exists()
    ]
    total = sum(len(path.read_bytes().splitlines()) for path, _, _ in files)
    with voice.phase("rate evaluations again", total, "prompts") as advance:
        for path, prompts, size in files:
            # What chose the shipped policy has the labelling scorer's numbers alone.
            chose = path.name.startswith(f"evaluation-{SHIPPED}-")
            some = {k: x for k, x in scorers.items() if k == SCORER or not chose}
            rate_file(path, codec, prompts, some, size, advance)


def rate_file(
    path: pathlib.Path,
    codec: TextCodec,
    asked: EncodedPrompts,
    scorers: Mapping[str, NamedScorer],
    size: int,
    advance: Callable[..., None],
) -> None:
    """Replaces what scorers gave to a file of answers, in batches of ``size``."""
    rows = resume_records(path, Rollout, lambda count: count)
    for at in range(0, len(rows), size):
        batch = rows[at : at + size]
        prompts, responses = [r.prompt for r in batch], [r.responses for r in batch]
        places = range(at, at + len(batch))
        known = asked.known(codec, places, [r.response_ids for r in batch])
        for field, scorer in scorers.items():
            found = rate(scorer, prompts, responses, known)
            said = doubts(scorer if field == SCORER else None, known, responses)
            batch = [
                replace(_rated(row, field, found, b), **said[b])
                for b, row in enumerate(batch)
            ]
        rows[at : at + size] = batch
        advance(len(batch))
    write_records(path, rows, replace=True)


def _rated(row: Rollout, field: str, found: Rating, b: int) -> Rollout:
    numbers = found.rewards_BR[b].tolist()
    if field == SCORER:
        spread = None if found.spread_BR is None else found.spread_BR[b].tolist()
        return replace(row, rewards=numbers, spread=spread)
    return replace(row, scores={**row.scores, field.removeprefix(SCORERS): numbers})


def _judge_again(
    disk: Disk,
    voice: Voice,
    t: int,
    answers: Mapping[str, list[Rollout]],
    judges: Mapping[str, NamedJudge],
    size: int,
) -> None:
    """Replaces the judgements of some judges of theta_t's answers, t above 0."""
    path = disk.folder(t) / JUDGEMENTS
    contests = [Contest(k, rows, opponents(disk, t, k)) for k, rows in answers.items()]
    if (shipped := answers_path(disk, t, SHIPPED)).exists():
        rows = read_records(shipped, Rollout)
        contests.append(Contest(SHIPPED, rows, met_by_mean(disk, t, answers)))
    title = f"iteration {t}: judge again"
    made = judge_contests(
        None, contests, judges, batch_size=size, voice=voice, title=title
    )
    now = {_place(one): one for one in made}
    known = resume_records(path, Judgement, lambda count: count)
    rows = [now.get(_place(one), one) for one in known]
    write_records(path, rows, replace=True)


def _place(one: Judgement) -> tuple[str, str, str, int, int]:
    return one.set, one.judge, one.against, one.prompt, one.sample


def _label_again(
    plan: Plan,
    disk: Disk,
    voice: Voice,
    iteration: int,
    scorers: Mapping[str, NamedScorer],
) -> None:
    """Rates the answers of the unfinished iteration; its pairs are to come again."""
    path = disk.folder(iteration) / "rollouts.jsonl"
    if not path.exists() and plan.pair_chunks is None:
        return
    disk.work.clear()
    for name in _DERIVED:
        remove_listed(disk.folder(iteration) / name)
    disk.rewind("pairs", iteration)
    if not path.exists():
        return  # offline pairs are rated when they are made again
    assert plan.schedule is not None
    prompts = plan.schedule.iteration(iteration)
    size, total = plan.config.rollout.batch_size, len(path.read_bytes().splitlines())
    title = f"iteration {iteration}: score again"
    with voice.phase(title, total, "prompts") as advance:
        codec = plan.runner.codec
        rate_file(path, codec, prompts, scorers, size, advance)
