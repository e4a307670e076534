"""Opening a run: everything that can be wrong is found before anything expensive."""

import contextlib
import datetime
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

from jax.sharding import Mesh

from tpmm_jax.config import MAY_CHANGE, Config, make_decoder, to_dict
from tpmm_jax.data.codec import TextCodec, make_codec, today
from tpmm_jax.data.prepare import load_rows
from tpmm_jax.data.table import best_lengths, even_lengths, pair_length, round_up
from tpmm_jax.errors import BadInput
from tpmm_jax.hosts import agree_same, once, shared_fate
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.header import show_header
from tpmm_jax.log.sessions import log_session
from tpmm_jax.log.trackers import check_trackers, open_log
from tpmm_jax.loop.answers import PolicyRunner
from tpmm_jax.loop.chunks import PairChunks, split_chunks
from tpmm_jax.loop.margins import load_margins, same_source_warning
from tpmm_jax.loop.offline_pairs import probe_pairs
from tpmm_jax.loop.prompts import MAIN, PromptSchedule, make_schedule
from tpmm_jax.loop.raters_record import write_record
from tpmm_jax.loop.repeat import check_raters, refuse_random
from tpmm_jax.loop.run import Disk, Plan, Run
from tpmm_jax.loop.scale import stored_scale
from tpmm_jax.loop.theta_0 import (
    check_adapter,
    check_codec,
    find_model,
    store_first,
)
from tpmm_jax.loop.training import check_tau
from tpmm_jax.loop.user_code import source_digests
from tpmm_jax.loop.voice import Voice
from tpmm_jax.loop.workdir import (
    ADDED,
    DATA,
    FORMAT,
    agree_place,
    as_begun,
    check_format,
    check_unchanged,
    open_workdir,
    pin_config,
    refuse_lost_lines,
)
from tpmm_jax.mesh import make_mesh
from tpmm_jax.models import Decoder
from tpmm_jax.models.experts import check_mesh
from tpmm_jax.rewards import COLUMN, MARGINS, NamedScorer, Raters
from tpmm_jax.scoring import (
    check_context,
    load_raters,
    measuring,
    relative_warning,
)
from tpmm_jax.store import (
    Trajectory,
    WorkStore,
    check_space,
    disk_need,
)
from tpmm_jax.store.digests import read_listed_json, write_listed_json
from tpmm_jax.weights.loading import adapters_base
from tpmm_jax.weights.source import Source


@contextlib.contextmanager
def open_run(
    config: Config,
    workdir: pathlib.Path,
    console: RunConsole,
    *,
    rescore: bool = False,
) -> Iterator[Run]:
    """Checks everything, stores theta_0 on the first start, yields the run.

    Args:
      rescore: stored ratings of a scorer or judge that was edited are to be replaced.

    Raises:
      BadInput, StorageError: names the field, file or disk, and what to do.
    """
    config.validate()
    with contextlib.ExitStack() as stack:
        stack.enter_context(open_workdir(workdir))
        storage = "lora" if config.model.adapters else config.store.storage
        trajectory = stack.enter_context(
            Trajectory(
                workdir / "trajectory", storage=storage, lora=config.model.adapters
            )
        )
        # Before theta_0 is committed nothing binds: a first start may be corrected.
        started = trajectory.refuse_damaged() > 0
        config = settle(config, workdir, trajectory, started=started)
        plan, source = prepare(config, workdir, console, started=started)
        sources = source_digests(config, plan.raters)
        record = check_raters(
            plan, workdir, sources, console, started=started, rescore=rescore
        )
        if started and plan.decoder.lora is not None:
            trajectory.base = adapters_base(workdir, plan.decoder)
            trajectory.restore_base()
        need = space_needed(config, plan.decoder)
        if not started:
            check_space(workdir, need)
        lengths = plan.runner.pair_lengths
        asked = 0 if plan.schedule is None else len(plan.schedule.sets[MAIN].ids)
        show_header(console, config, source, plan.mesh, workdir, need, lengths, asked)
        pin_run(workdir, plan, started=started)
        write_record(workdir, record)
        if not started:
            store_first(source, plan.decoder, trajectory, config.seed, workdir, console)
        work = stack.enter_context(WorkStore(workdir / "work"))
        log = stack.enter_context(open_log(workdir, config, console))
        disk = Disk(workdir, trajectory, work, log, plan.decoder)
        say_mended(disk, console)
        coming = agree_place(disk.next_iteration(config.iterations), work)
        log_session(
            workdir,
            resumed=started,
            next_iteration=coming,
            iterations=config.iterations,
            sources=sources,
            rescored=list(record.rescoring),
        )
        with shared_fate():
            yield Run(plan, disk, Voice(console))


def settle(
    config: Config, workdir: pathlib.Path, trajectory: Trajectory, *, started: bool
) -> Config:
    """Returns the config with which the run of a folder goes on.

    Raises:
      BadInput: the folder holds a run of another format or configuration.
      CorruptCheckpoint: lines of its list of policies were lost.
    """
    if started:
        check_format(workdir)
    refuse_lost_lines(workdir, trajectory)
    if started:
        config = as_begun(workdir, config, ADDED)
        check_unchanged(workdir, to_dict(config), may_change(config), added=ADDED)
    return config


def prepare(
    config: Config, workdir: pathlib.Path, console: RunConsole, *, started: bool
) -> tuple[Plan, Source]:
    """Returns the run's plan and where theta_0 is read, after every check of the input.

    Args:
      started: whether theta_0 is stored already.

    Raises:
      BadInput: names the field or file, and what to do.
    """
    check_trackers(config.report_to)
    mesh = make_mesh(config.mesh)
    date = start_date(workdir, started)
    raters = _find_raters(config, workdir, console, mesh, date, started)
    source = find_model(config.model, workdir, console, started)
    check_adapter(config.model, source)
    check_mesh(mesh, source.config)
    codec = make_codec(source.config, source.tokenizer, config.data, date)
    check_codec(codec, config.model.source)
    schedule, chunks = load_data(config, codec, workdir, console, started, raters)
    # Before all of them compute with it.
    digests = data_digests(config, schedule, chunks)
    agree_same({"data": digests, "tokenizer": codec.digest})
    if started:
        check_data(workdir, digests)
    if schedule is not None:
        try_raters(config, codec, raters, schedule, started=started)
    if chunks is not None and raters.margins is not None:
        try_margins(config, codec, raters.margins, chunks, started=started)
    check_steps(config, schedule, chunks)
    positions = source.config.max_positions
    longest_prompt, pair_lengths = run_lengths(config, schedule, chunks, positions)
    decoder = make_decoder(config.model, source.config, mesh)
    runner = PolicyRunner(
        decoder=decoder,
        codec=codec,
        sampling=config.rollout.sampling(),
        batch_size=config.rollout.batch_size,
        micro_batch=config.train.micro_batch,
        prompt_length=longest_prompt,
        pair_lengths=pair_lengths,
    )
    return Plan(config, runner, raters, schedule, chunks), source


def _find_raters(
    config: Config,
    workdir: pathlib.Path,
    console: RunConsole,
    mesh: Mesh,
    date: datetime.date,
    started: bool,
) -> Raters:
    """Returns what rates, with the scale that the run has; warns of what is odd."""
    raters = load_raters(
        config.scorer,
        config.evaluation.scorers,
        config.evaluation.judges,
        timeout=config.evaluation.timeout,
        judge=config.judge,
        mesh=mesh,
        date=date,
    )
    raters = replace(raters, margins=load_margins(config, mesh, date))
    if started:
        raters = stored_scale(config, raters, workdir)
    warnings = same_source_warning(config, raters), relative_warning(config.scorer)
    for text in filter(None, warnings):
        console.warn(text)
    return raters


def try_raters(
    config: Config,
    codec: TextCodec,
    raters: Raters,
    schedule: PromptSchedule,
    *,
    started: bool,
) -> None:
    """Calls scorers and judges on made-up answers.

    Raises:
      BadInput: one fails, is random, or is a model that cannot read the run's rows.
    """
    main, new = schedule.sets[MAIN], config.rollout.max_new_tokens
    asked = [one for some in schedule.sets.values() for one in some.asked]
    check_context(measuring(raters), asked, new)
    if not config.offline:
        asked = schedule.asked(config.iterations)
        check_context(raters.labelling(), asked, new)
    known = main.known(codec, [0], [[]])
    samples = config.rollout.samples_per_prompt
    said = raters.probe(main.texts[0], samples, known)
    if not started:
        refuse_random(config, said, raters.probe(main.texts[0], samples, known))


def try_margins(
    config: Config,
    codec: TextCodec,
    source: NamedScorer,
    chunks: PairChunks,
    *,
    started: bool,
) -> None:
    """Asks what margins come from about the longest offline pairs.

    Raises:
      BadInput: it fails, is random, or is a model that cannot read the pairs.
    """
    rows = [row for chunk in chunks for _, row in chunk]
    given = source, codec, rows, config.rollout.batch_size
    said = {MARGINS: probe_pairs(*given)}
    if not started:
        refuse_random(config, said, {MARGINS: probe_pairs(*given)})


def may_change(config: Config) -> set[str]:
    """Returns the fields that a started run may be given other values of."""
    # Offline, the number of iterations decides which pairs each one takes.
    return set(MAY_CHANGE) - ({"iterations"} if config.offline else set())


def start_date(workdir: pathlib.Path, started: bool) -> datetime.date:
    """Returns the day that the run's chat template writes: that on which it began."""
    if not started:
        return datetime.date.fromisoformat(once(lambda: today().isoformat(), "date"))
    record = read_listed_json(workdir / DATA)
    return datetime.date.fromisoformat(record["date"])


def data_digests(
    config: Config, schedule: PromptSchedule | None, chunks: PairChunks | None
) -> dict[str, str | None]:
    """Returns what pins a run's data: digests of its prompts and pairs."""
    pairs = None
    if chunks is not None:
        ids = [
            [held, row.prompt_ids, row.chosen_ids, row.rejected_ids]
            for chunk in chunks
            for held, row in chunk
        ]
        if config.madpo.margins == COLUMN:
            ids += [[row.margin for _, row in chunk] for chunk in chunks]
        pairs = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    return {"prompts": schedule.digest if schedule else None, "pairs": pairs}


def say_mended(disk: Disk, console: RunConsole) -> None:
    """Says what was put back, and which missing files are made again."""
    for text in disk.log.mended:
        console.note(text)
    for t in disk.trajectory.steps():
        if lost := disk.lost(t):
            names = ", ".join(lost)
            console.note(f"iteration {t}: {names} missing; made again as it was")


def pin_run(workdir: pathlib.Path, plan: Plan, *, started: bool) -> None:
    """Writes what later starts are compared with: config.json and data.json."""
    pin_config(workdir, to_dict(plan.config), started=started, added=ADDED)
    date = plan.runner.codec.date.isoformat()
    digests = data_digests(plan.config, plan.schedule, plan.pair_chunks)
    data = {**digests, "date": date, "format": FORMAT}
    write_listed_json(workdir / DATA, data, replace=True)


def check_data(workdir: pathlib.Path, now: Mapping[str, str | None]) -> None:
    """Raises BadInput if prompts or pairs are not those the run began with."""
    before = read_listed_json(workdir / DATA)
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise BadInput(
            f"the {' and '.join(changed)} changed since {workdir} was started, so its "
            "iterations would mix two data sets; restore the data, or choose another "
            "--workdir"
        )


def load_data(
    config: Config,
    codec: TextCodec,
    workdir: pathlib.Path,
    console: RunConsole,
    started: bool,
    raters: Raters,
) -> tuple[PromptSchedule | None, PairChunks | None]:
    """Returns the prompts and the offline pairs that the run uses, either or both.

    Args:
      raters: whose columns beside the prompts are read too.

    Raises:
      BadInput: rows that are to be refused, all of them listed, or too few are left.
    """
    schedule, chunks = None, None
    if config.data.prompts is not None or config.data.eval_prompts is not None:
        # Offline, margins are of pairs, which have no further columns.
        asking = replace(raters, margins=None) if config.offline else raters
        schedule = make_schedule(
            config, codec, workdir, console, started=started, raters=asking
        )
        uses = schedule.uses(config.iterations)
        if config.data.prompts is not None and uses > 1:
            console.warn(
                f"each prompt is used {uses:.1f} times over {config.iterations} "
                "iterations; give more prompts if each iteration is to have its own"
            )
    if config.data.pairs is not None:
        rows = load_rows(
            config.data.pairs,
            config.data,
            codec,
            note=console.note,
            warn=console.warn,
            margins=config.madpo.margins == COLUMN,
        )
        chunks = split_chunks(config, rows)
    return schedule, chunks


def check_steps(
    config: Config, schedule: PromptSchedule | None, chunks: PairChunks | None
) -> None:
    """Refuses a trust_region_tau that no iteration can reach."""
    rows = 0 if schedule is None else schedule.per_iteration[0]
    if chunks is not None:
        rows = min(sum(not held for held, _ in chunk) for chunk in chunks)
    steps = -(-rows // config.train.batch_size) * config.train.epochs
    check_tau(config, steps, "an iteration")


def run_lengths(
    config: Config,
    schedule: PromptSchedule | None,
    chunks: PairChunks | None,
    limit: int,
) -> tuple[int, tuple[int, ...]]:
    """Returns the length in tokens that prompts are padded to, and those of pairs.

    Raises:
      BadInput: they do not fit the model's positions.
    """
    prompt, pair = 0, 0
    if schedule is not None:
        prompt = schedule.longest(config.iterations)
        pair = prompt + config.rollout.max_new_tokens
    rows = [pair_length([row]) for chunk in chunks or () for _, row in chunk]
    pair = max([pair, *rows])
    if pair > limit:
        raise BadInput(
            f"prompts with completions reach {pair} tokens, the model has {limit} "
            "positions; lower data.max_prompt_length, rollout.max_new_tokens or "
            "data.max_completion_length"
        )
    room = limit - config.rollout.max_new_tokens
    longest, most = round_up(pair, limit), config.train.lengths
    lengths = best_lengths(rows, longest, most) if rows else even_lengths(longest, most)
    return round_up(prompt, room), lengths


def space_needed(config: Config, decoder: Decoder) -> int:
    """Returns bytes: trajectory, work checkpoints, deltas while merges are tried."""
    structure = decoder.abstract_trained()
    need = disk_need(
        structure, iterations=config.iterations, storage=config.store.storage
    )
    if config.reference.rule == "greedy_soup" or config.reference.evaluations:
        need += config.iterations * 4 * decoder.num_params
    return need
