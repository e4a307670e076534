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
from tpmm_jax.loading import (  # fmt: skip
    Source,
    read_config,
    read_tokenizer,
    resolve,
    write_description,
)
from tpmm_jax.loop.prompts import PromptSchedule, make_schedule
from tpmm_jax.loop.run import Run
from tpmm_jax.loop.training import check_tau
from tpmm_jax.mesh import make_mesh
from tpmm_jax.models import Decoder
from tpmm_jax.report.console import RunConsole
from tpmm_jax.report.metrics import MetricsLog
from tpmm_jax.rewards import Scorer, import_object, load_scorer, probe
from tpmm_jax.store import (  # fmt: skip
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
        check_unchanged(config, workdir)
        mesh = make_mesh(config.mesh)
        source = find_model(config, workdir, console)
        eos_ids = check_tokenizer(source, config)
        schedule, chunks = load_data(config, source.tokenizer, workdir, console)
        scorer = check_scorer(config, schedule)
        check_steps(config, chunks)
        lengths = run_lengths(config, schedule, chunks, source.config.max_positions)
        write_json(workdir / "config.json", to_dict(config))
        decoder = Decoder(
            source.config, config.model.compute_dtype, config.model.remat, mesh
        )
        need = space_needed(config, decoder)
        trajectory = stack.enter_context(
            Trajectory(workdir / "trajectory", storage=config.store.storage)
        )
        if not trajectory.steps():
            check_space(workdir, need)
        show_header(console, config, source, mesh, workdir, need)
        if not trajectory.steps():
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
    path = workdir / "config.json"
    if not path.exists():
        return
    before, now = _flat(read_json(path)), _flat(to_dict(config))
    changed = [
        f"{name}: {before.get(name)!r} before, {now.get(name)!r} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name) and name not in MAY_CHANGE
    ]
    if changed:
        raise BadInput(
            f"{workdir} holds a run of another configuration:\n  "
            + "\n  ".join(changed)
            + "\nChange it back to continue that run, or choose another --workdir"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def find_model(config: Config, workdir: pathlib.Path, console: RunConsole) -> Source:
    """Returns theta_0: from the trajectory on a restart, else from its source."""
    described, made = workdir / "model", workdir / "theta_0"
    if (workdir / "trajectory" / "0").exists() and described.exists():
        return Source(
            read_config(described),
            read_tokenizer(described),
            {"source": str(workdir)},
            _not_needed,
        )
    name = config.model.source
    if ":" in name and not pathlib.Path(name).exists():
        if not made.exists():
            build_model(name, made, console)
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
        schedule = make_schedule(config, tokenizer, workdir)
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
    order = np.random.default_rng([config.seed, 3]).permutation(len(rows))
    chunks: PairChunks = []
    for t, places in enumerate(np.array_split(order, config.iterations)):
        chunk = [rows[i] for i in places]
        prompts = sorted({tuple(row.prompt_ids) for row in chunk})
        rng = np.random.default_rng([config.seed, 4, t])
        count = round(config.pairing.holdout_fraction * len(prompts))
        held = {prompts[i] for i in rng.permutation(len(prompts))[:count]}
        chunks.append([(tuple(row.prompt_ids) in held, row) for row in chunk])
    return chunks


def check_scorer(config: Config, schedule: PromptSchedule | None) -> Scorer | None:
    """Returns the scorer after one call on made-up responses; None without."""
    if config.scorer.name is None:
        return None
    assert schedule is not None
    scorer = load_scorer(config.scorer)
    probe(
        scorer,
        config.scorer.name,
        schedule.evaluation.texts[0],
        config.rollout.samples_per_prompt,
    )
    return scorer


def check_steps(config: Config, chunks: PairChunks | None) -> None:
    """Refuses a trust_region_tau that no iteration can reach."""
    rows = round(
        (1 - config.pairing.holdout_fraction) * config.rollout.prompts_per_iteration
    )
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
            f"pairs a step, learning rate {config.train.learning_rate:g}",
        ),
        ("workdir", f"{workdir}, will hold up to {need / 1e9:.2f} GB"),
    ]
    if noise := config.pairing.flip_probability:
        rows.insert(4, ("noise", f"{noise:.0%} of the labels are flipped on purpose"))
    rows += [("note", advice) for advice in mesh_advice(mesh, source)]
    console.header(f"tpmm_jax: {config.iterations} iterations of DPO", rows)


def mesh_advice(mesh: Mesh, source: Source) -> list[str]:
    """Returns what a user may want to know of the mesh and this model."""
    tensor, heads = mesh.shape["tensor"], source.config.num_kv_heads
    if heads % tensor:
        return [
            f"mesh.tensor={tensor} does not divide {heads} key/value heads: they are "
            "replicated; mesh.fsdp splits this model's weights further"
        ]
    return []
