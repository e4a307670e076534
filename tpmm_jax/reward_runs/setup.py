"""Opening a reward run: what can be wrong is found before anything expensive."""

import contextlib
import math
import pathlib
from collections.abc import Iterator
from dataclasses import replace

from jax.sharding import Mesh

from tpmm_jax.config import (
    HELD_OUT,
    REWARD_MAY_CHANGE,
    RewardConfig,
    make_decoder,
    to_dict,
)
from tpmm_jax.data.codec import make_codec
from tpmm_jax.data.table import best_lengths, row_lengths
from tpmm_jax.errors import BadInput, CorruptCheckpoint
from tpmm_jax.hosts import agree_same, shared_fate
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.header import lengths_text, model_rows
from tpmm_jax.log.sessions import last_session, log_session, warn_versions
from tpmm_jax.log.trackers import check_trackers, open_log
from tpmm_jax.loop.run import Disk
from tpmm_jax.loop.setup import start_date
from tpmm_jax.loop.theta_0 import check_adapter, check_codec, find_model, store_first
from tpmm_jax.loop.voice import Voice
from tpmm_jax.loop.workdir import (
    DATA,
    FORMAT,
    REWARD_ADDED,
    agree_place,
    as_begun,
    check_format,
    check_unchanged,
    open_workdir,
    pin_config,
)
from tpmm_jax.merging import expert_pairs
from tpmm_jax.mesh import make_mesh
from tpmm_jax.models import Decoder, ModelConfig
from tpmm_jax.models.advice import mesh_advice
from tpmm_jax.models.experts import check_mesh
from tpmm_jax.reward_runs.plan import ITERATION, KEPT, RewardPlan, RewardRun
from tpmm_jax.reward_runs.sets import load_sets, reward_table
from tpmm_jax.store import Trajectory, WorkStore, check_space, disk_need
from tpmm_jax.store.digests import read_listed_json, write_listed_json
from tpmm_jax.weights.loading import adapters_base, start_reward, upcycled
from tpmm_jax.weights.source import Source


@contextlib.contextmanager
def open_reward_run(
    config: RewardConfig, workdir: pathlib.Path, console: RunConsole
) -> Iterator[RewardRun]:
    """Checks everything, stores the start on the first one, yields the run.

    Raises:
      BadInput, StorageError: names the field, file or disk, and what to do.
    """
    config.validate()
    with contextlib.ExitStack() as stack:
        stack.enter_context(open_workdir(workdir))
        check_trackers(config.report_to)
        _refuse_other_kind(workdir)
        lora = config.model.adapters
        storage = "lora" if lora else "float32"
        trajectory = stack.enter_context(
            Trajectory(workdir / KEPT, storage=storage, lora=lora)  # type: ignore[arg-type]
        )
        started = trajectory.refuse_damaged() > 0
        if started:
            check_format(workdir)
            _refuse_lost(workdir, trajectory)
            config = as_begun(workdir, config, REWARD_ADDED)
            check_unchanged(
                workdir, to_dict(config), REWARD_MAY_CHANGE, added=REWARD_ADDED
            )
        plan, source = prepare(config, workdir, console, started=started)
        if started and lora is not None:
            trajectory.base = adapters_base(workdir, plan.decoder)
            trajectory.restore_base()
        need = space_needed(plan)
        if not started:
            check_space(workdir, need)
        _show_header(console, plan, source, workdir, need)
        _pin(workdir, plan, started=started)
        if not started:
            store_first(
                source, plan.decoder, trajectory, config.seed, workdir, console,
                title="load the start",
            )  # fmt: skip
        work = stack.enter_context(WorkStore(workdir / "work"))
        log = stack.enter_context(open_log(workdir, config, console))
        disk = Disk(workdir, trajectory, work, log, plan.decoder)
        agree_place(ITERATION, work)
        for text in log.mended:
            console.note(text)
        warn_versions(last_session(workdir), console)
        log_session(workdir, resumed=started)
        with shared_fate():
            yield RewardRun(plan, disk, Voice(console))


def _refuse_other_kind(workdir: pathlib.Path) -> None:
    if (workdir / "trajectory").exists():
        raise BadInput(
            f"{workdir} holds a run of tpmm train; choose another --workdir for a "
            "reward model"
        )


def _refuse_lost(workdir: pathlib.Path, trajectory: Trajectory) -> None:
    """Raises CorruptCheckpoint if a finished run's best model is not listed."""
    path = workdir / "iterations" / f"{ITERATION:03d}" / "summary.json"
    if not path.exists():
        return
    kept = read_listed_json(path)["kept"]
    if kept not in trajectory.steps():
        raise CorruptCheckpoint(
            f"{trajectory.directory / 'trajectory.jsonl'} has no line for step {kept}, "
            f"which {path} names as the best; restore the file from a copy, or run "
            f"`tpmm repair {workdir}`"
        )


def prepare(
    config: RewardConfig, workdir: pathlib.Path, console: RunConsole, *, started: bool
) -> tuple[RewardPlan, Source]:
    """Returns the plan and what training begins with, after every check of the input.

    Raises:
      BadInput: names the field or file, and what to do.
    """
    mesh = make_mesh(config.mesh)

    def find(name: str, revision: str | None, base: str | None) -> Source:
        found = start_reward(name, config.seed, revision, base)
        if config.experts.count == 0:
            return found
        return upcycled(found, config.experts, config.seed)

    source = find_model(config.model, workdir, console, started, find)
    check_adapter(config.model, source)
    _check_experts(config, source.config, mesh)
    codec = make_codec(
        source.config,
        source.tokenizer,
        config.data.reading(),
        start_date(workdir, started),
    )
    check_codec(codec, config.model.source)
    limit = source.config.max_positions
    sets = load_sets(config, codec, limit, workdir, console)
    if source.config.experts is not None and "learned" in config.merge.rules:
        merge = config.merge.of("learned", config.seed)
        expert_pairs(sets.tests[HELD_OUT], merge, limit, codec.pad_id)
    if started and read_listed_json(workdir / DATA).get("pairs") != sets.digest():
        raise BadInput(
            f"the pairs changed since {workdir} was started; restore the data, or "
            "choose another --workdir"
        )
    decoder = make_decoder(config.model, source.config, mesh, config.noise)
    table = reward_table(sets.train, limit, codec.pad_id)
    lengths = best_lengths(
        row_lengths(table), table["mask_BNT"].shape[-1], config.train.lengths
    )
    return RewardPlan(config, decoder, codec, sets, table, lengths), source


def _check_experts(config: RewardConfig, model: ModelConfig, mesh: Mesh) -> None:
    """Raises BadInput for settings of experts that the model has not, and the like."""
    check_mesh(mesh, model)
    if model.experts is not None:
        if config.merge.rules and model.experts.shared is None:
            raise BadInput(
                f"{config.model.source} has no shared expert, so its experts are no "
                "copies of one feed-forward and are not merged; leave the merge out: "
                "merge.rules=[]"
            )
        if config.model.lora.rank:
            raise BadInput(
                "model.lora.rank is set, but LoRA would leave the routed experts as "
                "they are; train all weights (model.lora.rank=0)"
            )
        return
    for name, value in (
        ("loss.load_balance", config.loss.load_balance),
        ("loss.z_loss", config.loss.z_loss),
        ("noise.jitter", config.noise.jitter or None),
    ):
        if value is not None:
            raise BadInput(
                f"{name} is {value}, but the model has no experts; leave it unset, or "
                "set experts.count"
            )
    if changed := config.merge.changed():
        raise BadInput(
            f"{changed}, but the model has no experts to merge; leave it unset, or set "
            "experts.count"
        )


def space_needed(plan: RewardPlan) -> int:
    """Returns bytes: a model for each evaluation, work checkpoints, merged models.

    That is the most: a model is kept where the held-out loss is lower than before.
    """
    evaluations = math.ceil(plan.order.steps / plan.config.evaluation.every)
    storage = "lora" if plan.decoder.lora else "float32"
    structure = plan.decoder.abstract_trained()
    need = disk_need(structure, iterations=evaluations, storage=storage)
    if plan.decoder.config.experts is None:
        return need
    dense = replace(plan.decoder.config, experts=None)
    return need + 4 * Decoder(dense).num_params * len(plan.config.merge.rules)


def _show_header(
    console: RunConsole,
    plan: RewardPlan,
    source: Source,
    workdir: pathlib.Path,
    need: int,
) -> None:
    config, train = plan.config, plan.config.train
    tests = [
        f"{len(rows):,} {'held-out' if name == HELD_OUT else name}"
        for name, rows in plan.sets.tests.items()
    ]
    lora = plan.decoder.lora
    what = "all weights" if lora is None else f"LoRA of rank {lora.rank} and the head"
    advice = mesh_advice(plan.mesh, source.config, config.batch_sizes)
    patience = config.evaluation.patience
    end = f", ends after {patience} without gain" if patience else ""
    rows = [
        *model_rows(config.model, source, plan.mesh),
        ("data", f"{config.data.source}: {len(plan.sets.train):,} pairs train"),
        (
            "evaluation",
            f"{', '.join(tests)} pairs, every {config.evaluation.every} steps{end}",
        ),
        (
            "training",
            f"{what}, {plan.order.steps:,} steps of {train.batch_size} pairs padded to "
            f"{lengths_text(plan.lengths)}, learning rate {train.learning_rate:g}",
        ),
        ("workdir", f"{workdir}, will hold up to {need / 1e9:.2f} GB"),
        *(("note", text) for text in advice),
    ]
    console.header("tpmm_jax: a reward model from pairs", rows)


def _pin(workdir: pathlib.Path, plan: RewardPlan, *, started: bool) -> None:
    """Writes what later starts are compared with."""
    pin_config(workdir, to_dict(plan.config), started=started, added=REWARD_ADDED)
    date = plan.codec.date.isoformat()
    pairs = plan.sets.digest()
    agree_same({"data": pairs, "tokenizer": plan.codec.digest})
    data = {"pairs": pairs, "date": date, "format": FORMAT}
    write_listed_json(workdir / DATA, data, replace=True)
