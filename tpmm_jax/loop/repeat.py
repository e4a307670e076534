"""Whether scorers and judges still say what they said: a stored batch, rated again.

The batch is the first of the newest evaluation, in the shape in which it was rated: a
scorer may look at the whole of it.
"""

import json
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tpmm_jax.config import Config
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.records import Judgement, LabelledPair, Record, Rollout
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.sessions import last_session, warn_versions
from tpmm_jax.loop.cached_log_probs import THETA_0
from tpmm_jax.loop.judging import Contest, judge_batch
from tpmm_jax.loop.margins import stored_temperature
from tpmm_jax.loop.offline_pairs import rate_pairs
from tpmm_jax.loop.prompts import MAIN, EncodedPrompts
from tpmm_jax.loop.raters_record import (
    ANSWERS,
    JUDGEMENTS,
    PAIRS,
    ROLLOUTS,
    RatersRecord,
    rated_iterations,
    read_record,
)
from tpmm_jax.loop.run import Plan
from tpmm_jax.loop.user_code import edited, rater_fields, warn_edited
from tpmm_jax.rewards import (
    JUDGES,
    MARGINS,
    SCORER,
    SCORERS,
    NamedJudge,
    NamedScorer,
    Raters,
    whole_field,
)
from tpmm_jax.scoring import JUDGE
from tpmm_jax.store.records import read_growing_records

# What another machine may round otherwise: shares of the batch's range, and of its
# largest number.
OF_RANGE, OF_LARGEST = 1e-3, 1e-6
# Raters of which scorer.deterministic speaks, and not evaluation.random.
_OWN = (SCORER, MARGINS)


def refuse_random(
    config: Config, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
) -> None:
    """Refuses, at a run's first start, what does not say the same twice.

    Args:
      first, second: of ``Raters.probe``, on the same texts.

    Raises:
      BadInput: names the field, and the option that exempts it.
    """
    for field in _asked(config, first):
        before, now = np.atleast_2d(first[field]), np.atleast_2d(second[field])
        if place := worst(before, now):
            raise BadInput(
                f"{field} is asked twice about the same text and says "
                f"{before[place]:.6g}, then {now[place]:.6g}; a later start could not "
                "tell it from an edited one. Seed what it draws, or, if it is random "
                f"by intention: --set '{_exempting([field])}'"
            )


def _asked(config: Config, fields: Iterable[str]) -> list[str]:
    """Returns the raters that are to say the same of the same texts."""
    if not config.scorer.deterministic:
        return []
    exempt = config.evaluation.random
    return [k for k in fields if k in _OWN or _label(k) not in exempt]


def _exempting(fields: Iterable[str]) -> str:
    """Returns the setting that declares raters to be random."""
    labels = [_label(field) for field in fields if field not in _OWN]
    if set(_OWN) & set(fields):
        return "scorer.deterministic=false"
    return f"evaluation.random={json.dumps(labels)}"


def check_raters(
    plan: Plan,
    workdir: pathlib.Path,
    sources: Mapping[str, str],
    console: RunConsole,
    *,
    started: bool,
    rescore: bool,
) -> RatersRecord:
    """Returns the run's record, with the raters whose ratings are to be replaced.

    Warns of functions' files and of libraries that changed since the last start.

    Args:
      sources: of ``source_digests``, now.
      started: whether theta_0 is stored already.
      rescore: what changed is to be rated again, not refused.

    Raises:
      BadInput: a scorer or judge changed, and ``rescore`` is not set.
    """
    record = read_record(workdir, plan.config.rollout.batch_size)
    if not started:
        if rescore:
            console.note("--rescore: the run begins, and nothing is rated yet")
        return record
    before = last_session(workdir)
    warn_versions(before, console)
    files = edited(before.get("sources", {}), sources)
    changed: dict[str, str] = {}
    pinned = _pinned_judges(plan, before.get("sources", {}))
    if plan.schedule is not None:
        main = plan.schedule.sets[MAIN]
        changed = find_changed(plan, workdir, record, main, pinned)
    margins = None if MARGINS in pinned else plan.raters.margins
    if margins is not None and plan.config.scorer.deterministic:
        changed |= changed_margins(plan, workdir, margins, record)
    was = before.get("sources", {})
    changed |= _other_models(plan.config, plan.raters, was, sources, changed)
    # Of those that are being rated again some files hold what they said before.
    changed = {k: v for k, v in changed.items() if k not in record.rescoring}
    if not rescore:
        refuse_changed(workdir, changed)
        models = plan.raters.digests()
        warn_edited(plan.config, [f for f in files if f not in models], console)
        return record
    raters = {
        whole_field(field) for field in files if field in rater_fields(plan.config)
    }
    names = sorted({*record.rescoring, *changed, *raters})
    if not names:
        console.note("--rescore: every scorer and judge says what it said")
    for field in names:
        console.note(changed.get(field, f"{field} was edited") + ": it rates again")
    return replace(record, rescoring=names)


def find_changed(
    plan: Plan,
    workdir: pathlib.Path,
    record: RatersRecord,
    prompts: EncodedPrompts,
    pinned: Collection[str] = (),
) -> dict[str, str]:
    """Returns {field: what its function says now, and said} of raters that changed.

    Those that are declared random are not asked.

    Args:
      prompts: the evaluation's own set.
      pinned: fields that a digest speaks for; they are not asked either.
    """
    config, raters, num_prompts = plan.config, plan.raters, len(prompts.ids)
    scorers = {SCORERS + k: v for k, v in raters.scorers.items()}
    if raters.scorer is not None:
        scorers = {SCORER: raters.scorer, **scorers}
    scorers = {k: scorers[k] for k in _asked(config, scorers) if k not in pinned}
    judges = {JUDGES + k: v for k, v in raters.judges.items()}
    judges = {k: judges[k] for k in _asked(config, judges) if k not in pinned}
    codec = plan.runner.codec

    def stored(t: int) -> tuple[int, EncodedPrompts]:
        return min(record.size(ANSWERS, t), num_prompts), prompts

    found = _changed_scorers(scorers, workdir, ANSWERS, stored, codec)
    for field, judge in judges.items():
        if said := _changed_judge(field, judge, workdir, record, num_prompts):
            found[field] = said
    return found


def _pinned_judges(plan: Plan, before: Mapping[str, str]) -> set[str]:
    """Returns the fields of models that judge whose digest the last start left.

    It says by itself whether they are the same. Asked again, one may reply otherwise
    where another mesh or another machine rounds two words' chances apart.
    """
    names = rater_fields(plan.config)
    models = plan.raters.digests()
    return {k for k in models if names[k].startswith(JUDGE) and k in before}


def _other_models(
    config: Config,
    raters: Raters,
    before: Mapping[str, str],
    now: Mapping[str, str],
    known: Collection[str],
) -> dict[str, str]:
    """Returns {field: what it is} of models of ours that are others under their name.

    Args:
      known: fields that are found changed already.
    """
    models, names = raters.digests(), rater_fields(config)
    return {
        whole_field(field): f"{field} = {names[field]} is another model than at the "
        f"last start (its weights, its tokenizer or how it is asked: "
        f"{now[field][:12]}, then "
        f"{before[field][:12]})"
        for field in edited(before, now)
        if field in models and whole_field(field) not in known
    }


def refuse_changed(workdir: pathlib.Path, changed: Mapping[str, str]) -> None:
    """Raises BadInput if raters changed, with the ways on."""
    if not changed:
        return
    raise BadInput(
        "a scorer or judge says something else than when it rated this run:\n  "
        + "\n  ".join(changed.values())
        + f"\nThe iterations of {workdir} would not compare. Restore the function, or "
        "choose another --workdir, or add --rescore: evaluations and the unfinished "
        "iteration are rated again; finished iterations keep the pairs that they "
        "trained on, and are marked where these were labelled by an earlier scorer. If "
        f"it is random by intention: --set '{_exempting(changed)}'"
    )


def changed_margins(
    plan: Plan, workdir: pathlib.Path, source: NamedScorer, record: RatersRecord
) -> dict[str, str]:
    """Returns ``find_changed`` of what margins come from."""
    if plan.pair_chunks is None:
        rollout = plan.config.rollout
        schedule, codec = plan.schedule, plan.runner.codec
        assert schedule is not None
        size = min(rollout.batch_size, rollout.prompts_per_iteration)

        def stored(t: int) -> tuple[int, EncodedPrompts]:
            return size, schedule.iteration(t)

        return _changed_scorers(
            {MARGINS: source}, workdir, ROLLOUTS, stored, codec, record.earlier_margins
        )
    for t in reversed(rated_iterations(workdir, PAIRS)):
        if t <= record.earlier_margins:
            break
        rows = _stored(workdir, t, PAIRS, LabelledPair)
        rows = [row for row in rows if row.margin is not None]
        rows = rows[: plan.config.rollout.batch_size]
        if not rows:
            continue
        before = np.asarray([[row.margin for row in rows]], np.float64)
        chunk = [row for _, row in plan.pair_chunks[t - 1]]
        margins = rate_pairs(source, plan.runner.codec, chunk, rows, len(rows))
        now = np.asarray([margins]) / stored_temperature(workdir)
        if place := worst(before, now):
            return {
                MARGINS: f"{MARGINS} = {source.name} gives the pair of prompt "
                f"{rows[place[1]].prompt[:60]!r} the margin {now[place]:.6g}; it gave "
                f"{before[place]:.6g} in iteration {t}"
            }
        break
    return {}


def _changed_scorers(
    scorers: dict[str, NamedScorer],
    workdir: pathlib.Path,
    file: str,
    first: Callable[[int], tuple[int, EncodedPrompts]],
    codec: TextCodec,
    after: int = -1,
) -> dict[str, str]:
    """Returns ``find_changed`` of scorers whose numbers a file of answers holds.

    Args:
      first: iteration -> how many of its answers were rated at once, and its prompts.
      after: iterations up to here were rated by an earlier version.
    """
    found: dict[str, str] = {}
    for t in reversed(rated_iterations(workdir, file) if scorers else []):
        if t <= after:
            break
        count, asked = first(t)
        rows = _stored(workdir, t, file, Rollout)[:count]
        if len(rows) < count:
            continue  # a kill came within its first batch
        prompts, responses = [r.prompt for r in rows], [r.responses for r in rows]
        known = asked.known(codec, range(count), [r.response_ids for r in rows])
        for field, scorer in scorers.items():
            before = [
                row.rewards if field == SCORER else row.scores.get(_label(field))
                for row in rows
            ]
            if any(numbers is None for numbers in before):
                continue
            now_BR = scorer(prompts, responses, known)
            if place := worst(np.asarray(before, np.float64), now_BR):
                b, r = place
                found[field] = (
                    f"{field} = {scorer.name} gives response {r} of prompt "
                    f"{prompts[b][:60]!r} {now_BR[b, r]:.6g}; it gave "
                    f"{before[b][r]:.6g} in iteration {t}"  # type: ignore[index]
                )
        break
    return found


def _changed_judge(
    field: str,
    judge: NamedJudge,
    workdir: pathlib.Path,
    record: RatersRecord,
    num_prompts: int,
) -> str | None:
    label = _label(field)
    for t in reversed(rated_iterations(workdir, JUDGEMENTS)):
        count = min(record.size(JUDGEMENTS, t), num_prompts)
        ours, theirs = (_stored(workdir, s, ANSWERS, Rollout)[:count] for s in (t, 0))
        if min(len(ours), len(theirs)) < count:
            continue  # tpmm repair moved answers aside: they are made again
        before = [
            row
            for row in _stored(workdir, t, JUDGEMENTS, Judgement)
            if (row.set, row.judge, row.against) == (MAIN, label, THETA_0)
            and row.prompt < count
        ]
        if len(before) < sum(len(row.responses) for row in ours) or not before:
            continue
        contest = Contest(MAIN, ours, {THETA_0: theirs})
        now = judge_batch(contest, THETA_0, label, judge, range(count))
        both = ([[row.first, row.second] for row in rows] for rows in (before, now))
        before_BN, now_BN = map(np.asarray, both)
        if place := worst(before_BN, now_BN):
            row = before[place[0]]
            return (
                f"{field} = {judge.name} gives response {row.sample} of prompt "
                f"{ours[row.prompt].prompt[:60]!r} {now_BN[place]:.6g} against "
                f"theta_0; it gave {before_BN[place]:.6g} in iteration {t}"
            )
        return None
    return None


def worst(before: np.ndarray, now: np.ndarray) -> tuple[int, int] | None:
    """Returns the place that differs most, if it does beyond the tolerance."""
    allowed = OF_RANGE * np.ptp(before) + OF_LARGEST * np.abs(before).max()
    difference = np.abs(now - before)
    if (difference <= allowed).all():
        return None
    b, r = np.unravel_index(int(np.argmax(difference)), difference.shape)
    return int(b), int(r)


def _label(field: str) -> str:
    return field.rpartition(".")[2]


def _stored(
    workdir: pathlib.Path, t: int, name: str, kind: type[Record]
) -> Sequence[Record]:
    """Returns the records of a file that may be unfinished."""
    path = workdir / "iterations" / f"{t:03d}" / name
    return read_growing_records(path, kind)
