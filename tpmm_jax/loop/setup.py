"""Opening a run: everything that can be wrong is found before anything expensive."""

import contextlib
import datetime
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator

import jax

from tpmm_jax.config import MAY_CHANGE, Config, to_dict
from tpmm_jax.config.fields import changes
from tpmm_jax.data.codec import TextCodec, make_codec, today
from tpmm_jax.data.table import pair_length, round_up
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.header import show_header
from tpmm_jax.log.metrics import MetricsLog
from tpmm_jax.log.sessions import log_session
from tpmm_jax.loop.answers import PolicyRunner
from tpmm_jax.loop.chunks import PairChunks, load_chunks
from tpmm_jax.loop.prompts import PromptSchedule, make_schedule
from tpmm_jax.loop.run import ADAPTERS, Disk, Plan, Run
from tpmm_jax.loop.theta_0 import (
    base_record,
    check_adapter,
    check_codec,
    find_model,
)
from tpmm_jax.loop.training import check_tau
from tpmm_jax.loop.voice import Voice
from tpmm_jax.mesh import make_mesh
from tpmm_jax.models import Decoder
from tpmm_jax.models.lora import init_adapters
from tpmm_jax.rewards import Raters, load_raters
from tpmm_jax.store import (
    Base,
    RunLock,
    Trajectory,
    WorkStore,
    check_space,
    check_writable,
    disk_need,
)
from tpmm_jax.store.files import read_json, write_json
from tpmm_jax.weights.description import write_description
from tpmm_jax.weights.loading import Source, adapters_base


@contextlib.contextmanager
def open_run(
    config: Config, workdir: pathlib.Path, console: RunConsole
) -> Iterator[Run]:
    """Checks everything, stores theta_0 on the first start, yields the run.

    Raises:
      BadInput, StorageError: names the field, file or disk, and what to do.
    """
    config.validate()
    check_writable(workdir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(RunLock(workdir))
        trajectory = stack.enter_context(
            Trajectory(
                workdir / "trajectory",
                storage="lora" if config.model.adapters else config.store.storage,
                lora=config.model.adapters,
            )
        )
        # Before theta_0 is committed nothing binds: a first start may be corrected.
        started = bool(trajectory.steps())
        if started:
            check_unchanged(config, workdir)
        mesh = make_mesh(config.mesh)
        raters = load_raters(
            config.scorer, config.evaluation.scorers, config.evaluation.judges
        )
        source = find_model(config, workdir, console, started)
        check_adapter(config, source)
        date = start_date(workdir, started)
        codec = make_codec(source.config, source.tokenizer, config.data, date)
        check_codec(codec, config.model.source)
        schedule, chunks = load_data(config, codec, workdir, console)
        if started:
            check_data(workdir, schedule, chunks)
        probe(config, raters, schedule)
        check_steps(config, schedule, chunks)
        lengths = run_lengths(config, schedule, chunks, source.config.max_positions)
        decoder = Decoder(
            source.config,
            config.model.compute_dtype,
            config.model.remat,
            mesh,
            config.model.adapters,
        )
        if started and decoder.lora is not None:
            trajectory.base = adapters_base(workdir, decoder)
            trajectory.restore_base()
        need = space_needed(config, decoder)
        if not started:
            check_space(workdir, need)
        show_header(console, config, source, mesh, workdir, need, lengths)
        write_json(workdir / "config.json", to_dict(config))
        pinned = {**data_digests(schedule, chunks), "date": date.isoformat()}
        write_json(workdir / "data.json", pinned)
        if not started:
            store_first(source, decoder, trajectory, config.seed, workdir, console)
        log_session(workdir, config, trajectory.steps(), resumed=started)
        yield Run(
            Plan(
                config=config,
                runner=make_runner(config, decoder, codec, lengths),
                raters=raters,
                schedule=schedule,
                pair_chunks=chunks,
            ),
            Disk(
                workdir=workdir,
                trajectory=trajectory,
                work=stack.enter_context(WorkStore(workdir / "work")),
                log=stack.enter_context(MetricsLog(workdir)),
                decoder=decoder,
            ),
            Voice(console),
        )


def make_runner(
    config: Config,
    decoder: Decoder,
    codec: TextCodec,
    lengths: tuple[int, int],
) -> PolicyRunner:
    """Returns how the run's policies are sampled and evaluated."""
    return PolicyRunner(
        decoder=decoder,
        codec=codec,
        sampling=config.rollout.sampling(),
        batch_size=config.rollout.batch_size,
        micro_batch=config.train.batch_size // config.train.accumulation,
        prompt_length=lengths[0],
        pair_length=lengths[1],
        chunk_bytes=config.model.logits_chunk_mib * 2**20,
    )


def check_unchanged(config: Config, workdir: pathlib.Path) -> None:
    """Raises BadInput if the workdir's run was configured otherwise."""
    # Offline, the number of iterations decides which pairs each one takes.
    free = set(MAY_CHANGE) - ({"iterations"} if config.offline else set())
    changed = changes(read_json(workdir / "config.json"), to_dict(config), free)
    if changed:
        raise BadInput(
            f"{workdir} holds a run of another configuration:\n  "
            + "\n  ".join(changed)
            + "\nChange it back to continue that run, or choose another --workdir"
        )


def start_date(workdir: pathlib.Path, started: bool) -> datetime.date:
    """Returns the day that the run's chat template writes: that on which it began.

    Runs that did not record it have today's, from now on.

    Raises:
      BadInput: the record is no day.
    """
    path = workdir / "data.json"
    found = read_json(path).get("date") if started else None
    try:
        return today() if found is None else datetime.date.fromisoformat(found)
    except (TypeError, ValueError):
        raise BadInput(
            f"{path}: the date is {found!r}; wanted the day on which the run began, "
            "such as 2026-11-21"
        ) from None


def data_digests(
    schedule: PromptSchedule | None, chunks: PairChunks | None
) -> dict[str, str | None]:
    """Returns what pins a run's data: digests of its prompts and pairs."""
    pairs = None
    if chunks is not None:
        ids = [
            [held, row.prompt_ids, row.chosen_ids, row.rejected_ids]
            for chunk in chunks
            for held, row in chunk
        ]
        pairs = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    return {"prompts": schedule.digest if schedule else None, "pairs": pairs}


def check_data(
    workdir: pathlib.Path, schedule: PromptSchedule | None, chunks: PairChunks | None
) -> None:
    """Raises BadInput if prompts or pairs are not those the run began with."""
    before, now = read_json(workdir / "data.json"), data_digests(schedule, chunks)
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise BadInput(
            f"the {' and '.join(changed)} changed since {workdir} was started: its "
            "iterations would mix two data sets; put the data back, or choose another "
            "--workdir"
        )


def load_data(
    config: Config,
    codec: TextCodec,
    workdir: pathlib.Path,
    console: RunConsole,
) -> tuple[PromptSchedule | None, PairChunks | None]:
    """Returns the prompts and the offline pairs that the run uses, either or both."""
    schedule, chunks = None, None
    if config.data.prompts is not None or config.data.eval_prompts is not None:
        schedule = make_schedule(config, codec, workdir, console)
        uses = schedule.uses(config.iterations)
        if config.data.prompts is not None and uses > 1:
            console.warn(
                f"the prompts are used {uses:.1f} times over {config.iterations} "
                "iterations; give more for iterations of their own prompts"
            )
    if config.data.pairs is not None:
        chunks = load_chunks(config, codec, console)
    return schedule, chunks


def probe(config: Config, raters: Raters, schedule: PromptSchedule | None) -> None:
    """Calls scorers and judges once on made-up responses."""
    if schedule is not None:
        prompt = schedule.evaluation.texts[0]
        raters.probe(prompt, config.rollout.samples_per_prompt)


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
) -> tuple[int, int]:
    """Returns the lengths in tokens that prompts and pairs are padded to.

    Raises:
      BadInput: they do not fit the model's positions.
    """
    prompt, pair = 0, 0
    if schedule is not None:
        prompt = schedule.longest(config.iterations)
        pair = prompt + config.rollout.max_new_tokens
    if chunks is not None:
        pair = max(pair, pair_length(row for chunk in chunks for _, row in chunk))
    if pair > limit:
        raise BadInput(
            f"prompts with completions reach {pair} tokens, the model has {limit} "
            "positions; lower data.max_prompt_length, rollout.max_new_tokens or "
            "data.max_completion_length"
        )
    room = limit - config.rollout.max_new_tokens
    return round_up(prompt, room), round_up(pair, limit)


def space_needed(config: Config, decoder: Decoder) -> int:
    """Returns bytes: trajectory, work checkpoints, deltas while weights are learned."""
    structure = decoder.abstract_trained()
    need = disk_need(
        structure, iterations=config.iterations, storage=config.store.storage
    )
    if config.reference.rule in ("learned", "best", "greedy_soup", "uniform", "ema"):
        need += config.iterations * 4 * decoder.num_params
    return need


def store_first(
    source: Source,
    decoder: Decoder,
    trajectory: Trajectory,
    seed: int,
    workdir: pathlib.Path,
    console: RunConsole,
) -> None:
    """Reads theta_0's weights and appends them, or LoRA's zero product, as step 0."""
    described = workdir / "model"
    shutil.rmtree(described, ignore_errors=True)
    described.mkdir()
    write_description(source.config, source.tokenizer, "float32", described)
    with console.phase("load theta_0", 1, "models") as bar:
        meta = {"iteration": 0, **source.origin}
        if decoder.lora is None:
            trajectory.append(0, source.read(decoder, "float32"), meta)
        else:
            adapted = source.adapter
            under = source if adapted is None else adapted.base
            meta["base"] = base_record(workdir, under.origin)
            trajectory.base = Base(
                lambda: under.read(decoder, "float32"), under.origin["source"], ""
            )
            if adapted is not None:
                params = adapted.read(decoder)
            else:
                key = jax.random.fold_in(jax.random.key(seed), ADAPTERS)
                structure = decoder.abstract_params()
                params = init_adapters(structure, decoder.lora, key)
            trajectory.append(0, params, meta)
            trajectory.base = adapters_base(workdir, decoder)
        bar.advance(1)
