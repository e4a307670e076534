"""From a name to a model in memory."""

import os
import pathlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput
from tpmm_jax.merging import running_mean
from tpmm_jax.models import Decoder, ModelConfig
from tpmm_jax.models.lora import merge_adapters
from tpmm_jax.models.upcycling import UpcyclingConfig, upcycle_params
from tpmm_jax.store import Base, Trajectory
from tpmm_jax.store.digests import check_folder
from tpmm_jax.weights.description import read_config, read_generation
from tpmm_jax.weights.gguf import GGUFFile
from tpmm_jax.weights.hf_config import parse_config
from tpmm_jax.weights.hub import (
    DESCRIPTION_FILES,
    OTHER_WEIGHTS,
    POLICY,
    REWARD,
    TRAJECTORY,
    TRAJECTORY_STEP,
    WEIGHT_FILES,
    fetch,
    is_hub_id,
)
from tpmm_jax.weights.huggingface import (
    SafetensorsDirectory,
    TensorSource,
    check_tensors,
)
from tpmm_jax.weights.kept import (
    LAST,
    check_stored,
    committed_steps,
    damaged_step,
    held_steps,
    recommended,
    refuse_untrained,
    run_workdir,
    weights_of_mean,
)
from tpmm_jax.weights.peft import AdapterDirectory, is_adapter
from tpmm_jax.weights.source import AdapterSource, Model, Source, source_of_tensors
from tpmm_jax.weights.tokenizer import read_tokenizer

NAME_BASE = (
    "Name another model as the adapter's base, in full precision if this one is "
    "quantised: --base BASE of a command, model.base of a config, base=... in Python"
)


def load(
    source: str | os.PathLike,
    revision: str | None = None,
    dtype: Any = None,
    mesh: Mesh | None = None,
    base: str | os.PathLike | None = None,
) -> Model:
    """Loads a model.

    >>> model = tpmm.load("my-model")  # a directory, a .gguf file, a hub id, a run
    >>> model.config.num_layers
    2

    Args:
      source: a Hugging Face directory (safetensors, one file or a sharded index),
        a .gguf file, a hub id ("org/name"), a step of a run's trajectory
        ("workdir/trajectory@3"), a run's policy by name ("workdir/policy@last",
        "workdir/policy@mean" or "@learned"), a run's workdir: the policy that it
        ships, or a PEFT directory or hub id: its LoRA is added to the weights.
      revision: a hub id's branch, tag or commit; refused for anything else.
      dtype: of parameters and computation, "float32" (default) or "bfloat16".
      mesh: where the parameters lie; None: the default device.
      base: the model under a PEFT adapter, if not the one that it names.

    Raises:
      BadInput: nothing there, or something this library cannot run faithfully.
    """
    return _read(resolve(source, revision, base), dtype, mesh)


def load_reward(
    source: str | os.PathLike,
    revision: str | None = None,
    dtype: Any = None,
    mesh: Mesh | None = None,
    base: str | os.PathLike | None = None,
) -> Model:
    """Loads a reward model, for ``score`` and ``score_tokens``.

    >>> rm = tpmm.load_reward("my-reward-model")
    >>> rm.config.output
    'reward'

    Args:
      source: a Hugging Face directory or hub id of a *ForSequenceClassification with
        one label, a reward run's workdir: its best model, or one of those it kept
        ("workdir/reward@best", "workdir/reward@2"), or a PEFT directory or hub id of
        task SEQ_CLS: LoRA and a head of its own, over a causal model or a classifier.
      revision, dtype, mesh, base: see ``load``.

    Raises:
      BadInput: as ``load``; a model without a reward head is never given one.
    """
    return _read(resolve_reward(source, revision, base), dtype, mesh)


def _read(found: Source, dtype: Any, mesh: Mesh | None) -> Model:
    dtype = check_dtype(dtype or "float32")
    decoder = Decoder(found.config, compute_dtype=dtype, mesh=mesh)
    return found.model(decoder, found.read(decoder, dtype))


def resolve(
    source: str | os.PathLike,
    revision: str | None = None,
    base: str | os.PathLike | None = None,
) -> Source:
    """Finds a policy, reads its config and tokenizer; see ``load``."""
    given = None if base is None else os.fspath(base)
    return resolve_all([os.fspath(source)], given, revision)[0]


def resolve_reward(
    source: str | os.PathLike,
    revision: str | None = None,
    base: str | os.PathLike | None = None,
) -> Source:
    """Finds a reward model, reads its config and tokenizer; see ``load_reward``."""
    given = None if base is None else os.fspath(base)
    return _resolve_all([os.fspath(source)], given, revision, "reward")[0]


def resolve_all(
    sources: Sequence[str], base: str | None = None, revision: str | None = None
) -> list[Source]:
    """Returns several policies; the base is that of all PEFT adapters among them."""
    return _resolve_all(sources, base, revision, "tokens")


def resolve_any(
    sources: Sequence[str], base: str | None = None, revision: str | None = None
) -> list[Source]:
    """Returns policies and reward models; see ``resolve_all``."""
    return _resolve_all(sources, base, revision, None)


def _resolve_all(
    sources: Sequence[str], base: str | None, revision: str | None, output: str | None
) -> list[Source]:
    found = [_resolve(source, revision, base) for source in sources]
    if output is not None:
        for name, source in zip(sources, found):
            _check_output(name, source.config, output)
    if base is not None and not any(source.adapter for source in found):
        names = ", ".join(source.origin["source"] for source in found)
        raise BadInput(
            f"the base {base} goes with a PEFT adapter, and there is none "
            f"among {names}; leave the base out"
        )
    return found


def _check_output(name: str, config: ModelConfig, wanted: str) -> None:
    """Raises BadInput for a reward model in a policy's place, or the reverse."""
    if config.output == wanted:
        return
    if wanted == "tokens":
        raise BadInput(
            f"{name} is a reward model, which has no logits to sample from; wanted a "
            "causal language model. As a scorer it is named reward:SOURCE"
        )
    raise BadInput(
        f"{name} is a causal language model, which has no reward head; wanted a "
        "*ForSequenceClassification with one label, or a run of tpmm train_reward, "
        "which gives a causal model a head and trains it"
    )


def _resolve(name: str, revision: str | None, base: str | None) -> Source:
    if revision is not None and not is_hub_id(name):
        raise BadInput(f"revision={revision!r} is for a hub id; {name} is a local path")
    if match := TRAJECTORY_STEP.fullmatch(name):
        step = None if match["step"] == "best" else int(match["step"])
        return _resolve_step(pathlib.Path(match["workdir"] or "."), match["kept"], step)
    if match := POLICY.fullmatch(name):
        step = None if match["step"] is None else int(match["step"])
        workdir = pathlib.Path(match["workdir"] or ".")
        return _resolve_policy(workdir, match["name"], step)
    if name.rpartition("/")[2].startswith("policy@"):
        raise BadInput(
            f"{name}: a run's policies are policy@last, policy@mean, policy@mean..3 "
            "(of theta_0 to theta_3), policy@learned and trajectory@3"
        )
    origin = {"source": name}
    if name.lower().endswith(".gguf"):
        file = GGUFFile(name)
        config = parse_config(file.config, name)
        check_tensors(file, config)
        return source_of_tensors(config, file.tokenizer(), origin, lambda: file)
    if is_hub_id(name):
        return _resolve_hub(name, revision, base)
    directory = pathlib.Path(name)
    if (of_run := run_workdir(directory, TRAJECTORY)) is not None:
        return _resolve_policy(of_run, recommended(of_run), None)
    if (of_run := run_workdir(directory, REWARD)) is not None:
        return _resolve_step(of_run, REWARD, None)
    if is_adapter(directory):
        return _resolve_adapter(directory, origin, base)
    config, tokenizer = read_config(directory), read_tokenizer(directory)
    tensors = SafetensorsDirectory(directory)
    check_tensors(tensors, config)
    generation = read_generation(directory)
    return source_of_tensors(config, tokenizer, origin, lambda: tensors, generation)


def _resolve_hub(name: str, revision: str | None, base: str | None) -> Source:
    directory, commit = fetch(name, revision, DESCRIPTION_FILES)
    if is_adapter(directory):
        directory, _ = fetch(name, commit, WEIGHT_FILES, ignore=OTHER_WEIGHTS)
        # Only now can it be seen whether a whole model lies beside it.
        if is_adapter(directory):
            origin = {"source": name, "commit": commit}
            return _resolve_adapter(directory, origin, base)

    def open_tensors() -> TensorSource:
        # The commit, not the revision, which may have moved on since.
        folder, _ = fetch(name, commit, WEIGHT_FILES, ignore=OTHER_WEIGHTS)
        return SafetensorsDirectory(folder)

    origin = {"source": name, "commit": commit}
    config, tokenizer = read_config(directory), read_tokenizer(directory)
    generation = read_generation(directory)
    return source_of_tensors(config, tokenizer, origin, open_tensors, generation)


def _resolve_adapter(
    directory: pathlib.Path, origin: dict[str, Any], base: str | None
) -> Source:
    found = AdapterDirectory(directory)
    if base is None:
        name, revision = found.base()
        what = f"{found.path} names its base {name}"
    else:
        name, revision = base, None
        what = f"{name} was given as the base of {directory}"
    try:
        under = _resolve(name, revision if is_hub_id(name) else None, None)
        if not found.rewards:
            _check_output(name, under.config, "tokens")
    except BadInput as error:
        raise BadInput(f"{what}, which cannot be used: {error}\n{NAME_BASE}") from None
    if under.adapter is not None:
        raise BadInput(f"{what}, which is an adapter too. {NAME_BASE}")
    if base is not None:
        origin = origin | {"base": under.origin}
    if found.rewards:
        # The adapter brings the head: that of the base is not seen.
        under = _with_head(under, 0)
    lora = found.lora(under.config)

    def adapters(decoder: Decoder) -> Params:
        return found.read(under.config, decoder.abstract_params("float32"))

    def merged(decoder: Decoder, dtype: str) -> Params:
        added = adapters(decoder)
        params = merge_adapters(under.read(decoder, "float32"), added, lora)
        return jax.tree.map(lambda x: x.astype(dtype), params)

    return Source(
        under.config,
        read_tokenizer(directory) or under.tokenizer,
        origin,
        merged,
        AdapterSource(lora, under, adapters),
        under.generation,
    )


def _resolve_step(workdir: pathlib.Path, kept: str, wanted: int | None) -> Source:
    """A model that a run kept; None: the newest, of reward models the best."""
    if wanted is None:
        step = committed_steps(workdir, kept)[-1]
        refuse_untrained(workdir, kept, step)
    else:
        step, (steps, damaged) = wanted, held_steps(workdir, kept)
        if step in damaged:
            raise damaged_step(workdir, kept, step, damaged[step])
        if step not in steps:
            raise BadInput(f"{workdir}/{kept}@{step}: it holds the steps {steps}")

    def read(decoder: Decoder, dtype: str) -> Params:
        with Trajectory(workdir / kept, read_only=True) as trajectory:
            if trajectory.holds_adapters():
                trajectory.base = adapters_base(workdir, decoder)
            params = trajectory.restore(step, decoder.abstract_params("float32"))
        return jax.tree.map(lambda x: x.astype(dtype), params)

    folder = workdir / "model"
    check_folder(folder)
    origin = {"source": f"{workdir}/{kept}@{step}"}
    config = read_config(folder)
    check_stored(workdir, kept, step, config)
    tokenizer, generation = read_tokenizer(folder), read_generation(folder)
    return Source(config, tokenizer, origin, read, generation=generation)


def _resolve_policy(workdir: pathlib.Path, name: str, last: int | None) -> Source:
    """A run's newest policy, or a mean of theta_0 to theta_last, which it names."""
    steps = [k for k in committed_steps(workdir) if last is None or k <= last]
    found = _resolve_step(workdir, TRAJECTORY, steps[-1] if last is None else last)
    if name == LAST or len(steps) == 1:
        return found
    weights = weights_of_mean(workdir, name, steps[-1])

    def read(decoder: Decoder, dtype: str) -> Params:
        target = decoder.abstract_params("float32")
        with Trajectory(workdir / TRAJECTORY, read_only=True) as trajectory:
            if trajectory.holds_adapters():
                trajectory.base = adapters_base(workdir, decoder)
            models = (trajectory.restore(k, target) for k in weights)
            params = running_mean(models, weights.values())
        return jax.tree.map(lambda x: x.astype(dtype), params)

    origin = {"source": f"{workdir}/policy@{name}..{steps[-1]}"}
    return replace(found, origin=origin, read=read)


def adapters_place(
    workdir: pathlib.Path, kept: str = TRAJECTORY
) -> tuple[str, str | None, int | None]:
    """Returns name and revision of the model under a run's adapters, and a seed.

    It is where the run found it, or where WORKDIR/base links to; a link to the PEFT
    directory that the run began with means the model under that one. The seed is that
    of a reward model's head; None: the model has one.
    """
    with Trajectory(workdir / kept, read_only=True) as trajectory:
        record = trajectory.meta(0)["base"]
    link, seed = workdir / "base", record.get("seed")
    if os.path.lexists(link):
        name = os.path.realpath(link)
        linked = pathlib.Path(name)
        if is_adapter(linked):
            return *AdapterDirectory(linked).base(), seed
        return name, None, seed
    if commit := record.get("commit"):
        return record["source"], commit, seed
    return str(workdir / record["source"]), None, seed


def adapters_base(workdir: pathlib.Path, decoder: Decoder) -> Base:
    """Returns the weights under a run's adapters, not read yet."""
    rewards = decoder.config.output == "reward"
    name, revision, seed = adapters_place(workdir, REWARD if rewards else TRAJECTORY)
    link = workdir / "base"
    advice = f"put it back, or make {link} a link to where those weights are now"

    def read() -> Params:
        find = resolve_reward if rewards else resolve
        under = (
            find(name, revision) if seed is None else start_reward(name, seed, revision)
        )
        return under.read(decoder, "float32")

    return Base(read, name, advice)


def start_reward(
    source: str | os.PathLike,
    seed: int,
    revision: str | None = None,
    base: str | os.PathLike | None = None,
) -> Source:
    """Finds what the training of a reward model begins with.

    A reward model is taken as it is; a causal model loses its head over the vocabulary
    and gets a new one, drawn from N(0, 1/(D + 1)) by ``seed``.

    Args:
      source, revision, base: see ``load`` and ``load_reward``.
    """
    given = None if base is None else os.fspath(base)
    return _with_head(_resolve(os.fspath(source), revision, given), seed)


def _with_head(found: Source, seed: int) -> Source:
    """Returns a reward model: what was found, or its backbone with a new head.

    The seed is then part of the origin.
    """
    if found.config.output == "reward":
        return found
    config = replace(found.config, output="reward")

    def read(decoder: Decoder, dtype: str) -> Params:
        causal = replace(decoder, config=found.config)
        params = found.read(causal, dtype)
        params.pop("head", None)
        target = decoder.abstract_params(dtype)["score"]
        std = (config.width + 1) ** -0.5
        key = jax.random.key(seed)
        score = std * jax.random.normal(key, target.shape, jnp.float32)
        params["score"] = jax.device_put(score.astype(dtype), target.sharding)
        return params

    return Source(config, found.tokenizer, found.origin | {"seed": seed}, read)


def upcycled(found: Source, upcycling: UpcyclingConfig, seed: int) -> Source:
    """Returns a dense reward model as a mixture of experts; see ``upcycling``.

    Raises:
      BadInput: it cannot be upcycled.
    """
    config = upcycling.of(found.config, found.origin.get("source", "the model"))

    def read(decoder: Decoder, dtype: str) -> Params:
        params = found.read(replace(decoder, config=found.config), dtype)
        key = jax.random.key(seed)
        made = upcycle_params(params, config, upcycling.noise, key)
        like = decoder.abstract_params(dtype)
        return jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), made, like)

    origin = found.origin | {"experts": asdict(upcycling), "experts_seed": seed}
    return Source(config, found.tokenizer, origin, read, generation=found.generation)


def check_dtype(dtype: Any) -> str:
    """Returns "float32" or "bfloat16" for any spelling of them."""
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in ("float32", "bfloat16"):
        raise BadInput(f"dtype is {name}; wanted float32 or bfloat16")
    return name
