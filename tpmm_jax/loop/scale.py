"""Where the labelling scorer's rewards are centred and clipped: fixed for the run.

theta_0's answers to the evaluation prompts are drawn before anything is rated. What the
scorer's members say of them gives scorer.json; only then are these answers rated, and
all that come after them, by one and the same scale.
"""

import pathlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tpmm_jax.config import Config
from tpmm_jax.data.records import Rollout
from tpmm_jax.errors import CorruptCheckpoint
from tpmm_jax.loop.answers import LazyParams, sample_answers
from tpmm_jax.loop.evaluation import answers_path
from tpmm_jax.loop.prompts import MAIN
from tpmm_jax.loop.raters_record import ANSWERS, read_record
from tpmm_jax.loop.rescoring import rate_file
from tpmm_jax.loop.run import EVALUATION, Disk, Plan
from tpmm_jax.loop.voice import Voice
from tpmm_jax.rewards import (
    SCALE,
    SCORER,
    SCORERS,
    Combination,
    Raters,
    Scale,
    with_scale,
)
from tpmm_jax.store.digests import is_finished, read_listed_json, write_listed_json
from tpmm_jax.store.records import read_growing_records


def stored_scale(config: Config, raters: Raters, workdir: pathlib.Path) -> Raters:
    """Returns the raters with the scale that the run has, if it has one by now.

    Raises:
      CorruptCheckpoint: it went missing, or is not what the run wrote.
    """
    if raters.scorer is None or not config.scorer.scaled:
        return raters
    path = workdir / SCALE
    if is_finished(path):
        count = len(raters.scorer.parts)
        scale = _parse(path, read_listed_json(path), count)
        return replace(raters, scorer=with_scale(raters.scorer, scale))
    answers = workdir / "iterations" / "000" / ANSWERS
    if any(row.rewards is not None for row in read_growing_records(answers, Rollout)):
        raise CorruptCheckpoint(
            f"{path} is missing: it holds where the scorer's rewards are centred and "
            "clipped in this run; restore the file from a copy, or choose another "
            "--workdir"
        )
    return raters


def fix_scale(plan: Plan, disk: Disk, voice: Voice) -> Plan:
    """Returns the plan with the scale of its scorer; finds it where there is none.

    A scorer that is to rate the run again (``--rescore``) gets a scale of its own.
    """
    scorer = plan.raters.scorer
    if scorer is None or not plan.config.scorer.scaled:
        return plan
    record = read_record(disk.workdir, plan.config.rollout.batch_size)
    size = record.size(ANSWERS, 0)
    path = disk.workdir / SCALE
    if not is_finished(path) or SCORER in record.rescoring:
        assert isinstance(scorer.function, Combination)
        said_KN = _ask(plan, disk, voice, scorer.function, size)
        scale = scorer.function.measure(said_KN)
        write_listed_json(path, _record(scorer.parts, scale), replace=True)
    raters = stored_scale(plan.config, plan.raters, disk.workdir)
    plan = replace(plan, raters=raters)
    _rate_first(plan, disk, voice, size)
    return plan


def _ask(
    plan: Plan, disk: Disk, voice: Voice, scorer: Combination, size: int
) -> np.ndarray:
    """Returns what each member says of theta_0's answers, [K, N]."""
    assert plan.schedule is not None
    prompts, codec = plan.schedule.sets[MAIN], plan.runner.codec
    answers = sample_answers(
        plan.runner,
        voice,
        answers_path(disk, 0, MAIN),
        prompts,
        Raters(),
        params=LazyParams(lambda: disk.policy(0)),
        key=plan.key(0, EVALUATION),
        num_samples=plan.config.evaluation.samples_per_prompt,
        title="answers of theta_0",
    )
    said = []
    with voice.phase("scale of the rewards", len(answers), "prompts") as advance:
        for at in range(0, len(answers), size):
            rows = answers[at : at + size]
            places = range(at, at + len(rows))
            known = prompts.known(codec, places, [row.response_ids for row in rows])
            texts = [row.prompt for row in rows], [row.responses for row in rows]
            said.append(scorer.ask(*texts, known))
            advance(len(rows))
    return np.concatenate(said, axis=1).reshape(len(scorer.members), -1)


def _rate_first(plan: Plan, disk: Disk, voice: Voice, size: int) -> None:
    """Rates the answers of theta_0 that were drawn to find the scale."""
    assert plan.schedule is not None and plan.raters.scorer is not None
    path = answers_path(disk, 0, MAIN)
    rows = read_growing_records(path, Rollout)
    if not rows or all(row.rewards is not None for row in rows):
        return
    raters = plan.raters
    scorers = {SCORERS + label: one for label, one in raters.scorers.items()}
    scorers = {SCORER: plan.raters.scorer, **scorers}
    prompts, codec = plan.schedule.sets[MAIN], plan.runner.codec
    with voice.phase("rate theta_0", len(rows), "prompts") as advance:
        rate_file(path, codec, prompts, scorers, size, advance)


def _record(members: Sequence[Any], scale: Scale) -> dict[str, Any]:
    rows = [
        {"name": member.name, "centre": centre, "scale": width}
        for member, centre, width in zip(members, scale.centre, scale.scale)
    ]
    return {"answers": scale.answers, "members": rows}


def _parse(path: pathlib.Path, record: Any, count: int) -> Scale:
    try:
        rows = record["members"]
        centre = tuple(float(row["centre"]) for row in rows)
        scale = tuple(float(row["scale"]) for row in rows)
        good = len(rows) == count and np.isfinite([*centre, *scale]).all()
        if not good or min(scale) <= 0:
            raise ValueError(f"wanted {count} members, each of a scale above 0")
        return Scale(centre, scale, int(record["answers"]))
    except (TypeError, ValueError, KeyError) as error:
        raise CorruptCheckpoint(
            f"{path} is not what the run wrote ({type(error).__name__}: {error}); "
            "restore the file from a copy"
        ) from None
