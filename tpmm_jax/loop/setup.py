"""Opening a run: everything that can be wrong is found before anything expensive."""

import contextlib
import hashlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tpmm_jax.config import MAY_CHANGE, Config, to_dict
from tpmm_jax.data.batches import PairRow
from tpmm_jax.data.pair_tokens import count_table, encode_pairs
from tpmm_jax.data.pairs import load_pairs
from tpmm_jax.data.table import pair_length, round_up
from tpmm_jax.data.tokens import pad_id, require_eos
from tpmm_jax.errors import BadInput
from tpmm_jax.loading import (
    Source,
    read_config,
    read_tokenizer,
    resolve,
    write_description,
)
from tpmm_jax.loop.prompts import PromptSchedule, made_from, make_schedule
from tpmm_jax.loop.run import Run
from tpmm_jax.loop.training import check_tau
from tpmm_jax.mesh import make_mesh
from tpmm_jax.models import Decoder
from tpmm_jax.report.console import RunConsole
from tpmm_jax.report.metrics import MetricsLog
from tpmm_jax.rewards import Scorer, import_object, load_scorer, probe
from tpmm_jax.store import (
    RunLock,
    Trajectory,
    WorkStore,
    check_space,
    check_writable,
    disk_need,
)
from tpmm_jax.store.files import read_json, write_json

PairChunks = list[list[tuple[bool, PairRow]]]


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
            Trajectory(workdir / "trajectory", storage=config.store.storage)
        )
        # Before theta_0 is committed nothing binds: a first start may be corrected.
        started = bool(trajectory.steps())
        if started:
            check_unchanged(config, workdir)
        mesh = make_mesh(config.mesh)
        scorer = None if config.scorer.name is None else load_scorer(config.scorer)
        source = find_model(config, workdir, console, started)
        eos_ids = check_tokenizer(source, config)
        schedule, chunks = load_data(config, source.tokenizer, workdir, console)
        if started:
            check_data(workdir, schedule, chunks)
        probe_scorer(config, scorer, schedule)
        check_steps(config, schedule, chunks)
        lengths = run_lengths(config, schedule, chunks, source.config.max_positions)
        decoder = Decoder(
            source.config, config.model.compute_dtype, config.model.remat, mesh
        )
        need = space_needed(config, decoder)
        if not started:
            check_space(workdir, need)
        show_header(console, config, source, mesh, workdir, need, lengths)
        write_json(workdir / "config.json", to_dict(config))
        if not started:
            write_json(workdir / "data.json", data_digests(schedule, chunks))
            store_first(source, decoder, trajectory, workdir, console)
        yield Run(
            config=config,
            workdir=workdir,
            decoder=decoder,
            tokenizer=source.tokenizer,
            eos_ids=eos_ids,
            pad_id=pad_id(source.tokenizer),
            prompt_length=lengths[0],
            pair_length=lengths[1],
            tokenizer_digest=tokenizer_digest(source.tokenizer),
            trajectory=trajectory,
            work=stack.enter_context(WorkStore(workdir / "work")),
            log=stack.enter_context(MetricsLog(workdir)),
            console=console,
            scorer=scorer,
            schedule=schedule,
            pair_chunks=chunks,
        )


def check_unchanged(config: Config, workdir: pathlib.Path) -> None:
    """Raises BadInput if the workdir's run was configured otherwise."""
    before, now = _flat(read_json(workdir / "config.json")), _flat(to_dict(config))
    # Offline, the number of iterations decides which pairs each one takes.
    free = set(MAY_CHANGE) - ({"iterations"} if config.offline else set())
    changed = [
        f"{name}: {before.get(name)!r} before, {now.get(name)!r} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name) and name not in free
    ]
    if changed:
        raise BadInput(
            f"{workdir} holds a run of another configuration:\n  "
            + "\n  ".join(changed)
            + "\nChange it back to continue that run, or choose another --workdir"
        )


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


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def find_model(
    config: Config, workdir: pathlib.Path, console: RunConsole, started: bool
) -> Source:
    """Returns theta_0: as described in a started run, else from its source."""
    described, made = workdir / "model", workdir / "theta_0"
    if started:
        return Source(
            read_config(described),
            read_tokenizer(described),
            {"source": str(workdir)},
            _not_needed,
        )
    name = config.model.source
    if ":" in name and not pathlib.Path(name).exists():
        made_from(made, name, lambda: build_model(name, made, console))
        name = str(made)
    return resolve(name, config.model.revision)


def _not_needed(decoder: Decoder, dtype: str) -> Any:
    raise BadInput(
        "the trajectory lost theta_0, which the model's description beside it still "
        "belongs to; start a new workdir"
    )


def build_model(name: str, directory: pathlib.Path, console: RunConsole) -> None:
    """Calls "module:function" with (directory, console); it appears whole or not."""
    build = import_object(name, "model.source")
    shutil.rmtree(directory, ignore_errors=True)
    for left in directory.parent.glob(".building-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".building-") as tmp:
        target = pathlib.Path(tmp) / "model"
        target.mkdir()
        build(target, console)
        target.rename(directory)


def check_tokenizer(source: Source, config: Config) -> tuple[int, ...]:
    """Returns the ids that end a completion; raises BadInput where there is none."""
    if source.tokenizer is None:
        raise BadInput(
            f"{config.model.source} has no tokenizer (tokenizer.json); training needs "
            "one: copy it from the model's publisher into that directory"
        )
    require_eos(source.tokenizer)
    if config.data.chat and not source.tokenizer.chat_template:
        raise BadInput(
            f"data.chat is set, but the tokenizer of {config.model.source} has no chat "
            "template; use an instruction-tuned model, or set data.chat=false"
        )
    size = len(source.tokenizer)
    if size > source.config.vocab_size:
        raise BadInput(
            f"the tokenizer has {size} tokens, the model only "
            f"{source.config.vocab_size} embeddings; they do not belong together"
        )
    ids = (*source.config.eos_ids, source.tokenizer.eos_token_id)
    return tuple(dict.fromkeys(int(i) for i in ids))


def load_data(
    config: Config, tokenizer: Any, workdir: pathlib.Path, console: RunConsole
) -> tuple[PromptSchedule | None, PairChunks | None]:
    """Returns the prompts and the offline pairs that the run uses, either or both."""
    schedule, chunks = None, None
    if config.data.prompts is not None or config.data.eval_prompts is not None:
        schedule = make_schedule(config, tokenizer, workdir, console)
        uses = schedule.uses(config.iterations)
        if config.data.prompts is not None and uses > 1:
            console.warn(
                f"the prompts are used {uses:.1f} times over {config.iterations} "
                "iterations; give more for iterations of their own prompts"
            )
    if config.data.pairs is not None:
        chunks = load_chunks(config, tokenizer, console)
    return schedule, chunks


def load_chunks(config: Config, tokenizer: Any, console: RunConsole) -> PairChunks:
    """Returns T chunks of the pair set; whole prompts are held out."""
    data = config.data
    assert data.pairs is not None
    found = load_pairs(data.pairs, split=data.split)
    for warning in found.warnings:
        console.warn(warning)
    rows, counts = encode_pairs(
        tokenizer,
        found.pairs,
        chat=data.chat,
        max_prompt_length=data.max_prompt_length,
        max_completion_length=data.max_completion_length,
        truncate=data.truncate_prompt,
    )
    for what, count in count_table({**found.counts, **counts}):
        if count:
            console.note(f"{count:>8,} {what}")
    if len(rows) < config.iterations:
        raise BadInput(
            f"{data.pairs} has {len(rows)} usable pairs for {config.iterations} "
            "iterations; lower iterations or give more pairs"
        )
    return split_chunks(config, rows)


def split_chunks(config: Config, rows: list[PairRow]) -> PairChunks:
    """Returns T chunks. A prompt is in one chunk, and held out there or not."""
    by_prompt: dict[tuple[int, ...], list[PairRow]] = {}
    for row in rows:
        by_prompt.setdefault(tuple(row.prompt_ids), []).append(row)
    groups = list(by_prompt.values())
    order = np.random.default_rng([config.seed, 3]).permutation(len(groups))
    held = round(config.pairing.holdout_fraction * len(groups))
    wanted = config.iterations
    if len(groups) - held < wanted or 0 < held < wanted:
        raise BadInput(
            f"{config.data.pairs} has {len(groups)} different prompts, {held} of them "
            f"held out: too few for {wanted} iterations; lower iterations or give more"
        )
    chunks: PairChunks = [[] for _ in range(wanted)]
    for is_held, part in ((False, order[held:]), (True, order[:held])):
        for chunk, places in zip(chunks, np.array_split(part, wanted)):
            chunk += [(is_held, row) for place in places for row in groups[place]]
    return chunks


def probe_scorer(
    config: Config, scorer: Scorer | None, schedule: PromptSchedule | None
) -> None:
    """Calls the scorer once on made-up responses."""
    if scorer is not None and schedule is not None:
        name, prompt = str(config.scorer.name), schedule.evaluation.texts[0]
        probe(scorer, name, prompt, config.rollout.samples_per_prompt)


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
    structure = decoder.abstract_params("float32")
    need = disk_need(
        structure, iterations=config.iterations, storage=config.store.storage
    )
    if config.reference.rule in ("learned", "best", "greedy_soup", "uniform", "ema"):
        need += config.iterations * 4 * decoder.config.num_params
    return need


def store_first(
    source: Source,
    decoder: Decoder,
    trajectory: Trajectory,
    workdir: pathlib.Path,
    console: RunConsole,
) -> None:
    """Reads theta_0's weights and appends them as step 0."""
    described = workdir / "model"
    shutil.rmtree(described, ignore_errors=True)
    described.mkdir()
    write_description(source.config, source.tokenizer, "float32", described)
    with console.phase("load theta_0", 1, "models") as bar:
        params = source.read(decoder, "float32")
        trajectory.append(0, params, {"iteration": 0, **source.origin})
        bar.advance(1)


def tokenizer_digest(tokenizer: Any) -> str:
    """Returns a SHA-256 of the vocabulary and the chat template."""
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def show_header(
    console: RunConsole,
    config: Config,
    source: Source,
    mesh: Mesh,
    workdir: pathlib.Path,
    need: int,
    lengths: tuple[int, int],
) -> None:
    """Prints what is about to run."""
    model = source.config
    origin = config.model.source
    if "commit" in source.origin:
        origin += f" at {source.origin['commit'][:12]}"
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    kind = jax.devices()[0].device_kind
    labels = "offline" if config.offline else f"labelled by {config.scorer.name}"
    rule = config.reference.rule
    if rule == "learned":
        rule += f", {config.reference.granularity} weights, "
        rule += config.reference.objective
    size = f"{model.num_params / 1e6:,.1f} M parameters"
    rows = [
        ("model", f"{origin}: {model.family}, {size}"),
        (
            "devices",
            f"{mesh.devices.size} x {kind}, mesh {shape}, {config.model.compute_dtype}",
        ),
        ("data", f"{config.data.prompts or config.data.pairs}, {labels}"),
        ("reference", rule),
        (
            "training",
            f"{config.loss.name}, beta {config.loss.beta:g}, {config.train.batch_size} "
            f"pairs a step padded to {lengths[1]} tokens, learning rate "
            f"{config.train.learning_rate:g}",
        ),
        ("workdir", f"{workdir}, will hold up to {need / 1e9:.2f} GB"),
    ]
    if noise := config.pairing.flip_probability:
        rows.insert(4, ("noise", f"{noise:.0%} of the labels are flipped on purpose"))
    rows += [("note", advice) for advice in mesh_advice(mesh, source, config)]
    console.header(f"tpmm_jax: {config.iterations} iterations of DPO", rows)


def mesh_advice(mesh: Mesh, source: Source, config: Config) -> list[str]:
    """Returns what a user may want to know of the mesh and this run."""
    tensor, heads = mesh.shape["tensor"], source.config.num_kv_heads
    advice = []
    if heads % tensor:
        advice.append(
            f"mesh.tensor={tensor} does not divide {heads} key/value heads: they are "
            "replicated; mesh.fsdp splits this model's weights further"
        )
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    pairs = config.train.batch_size // config.train.accumulation
    sizes = {
        "train.batch_size / train.accumulation": pairs,
        "rollout.batch_size": config.rollout.batch_size,
    }
    for name, size in sizes.items():
        if size % parts:
            advice.append(
                f"{name} = {size} is no multiple of data x fsdp = {parts}: devices "
                "repeat each other's work; choose one that is"
            )
    return advice
