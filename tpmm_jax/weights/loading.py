"""From a name to a model in memory."""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput, CorruptCheckpoint
from tpmm_jax.models import Decoder, LoraConfig, ModelConfig
from tpmm_jax.models.lora import merge_adapters
from tpmm_jax.store import Base, Trajectory
from tpmm_jax.store.digests import check_folder
from tpmm_jax.weights.description import read_config, read_generation, read_tokenizer
from tpmm_jax.weights.gguf import GGUFFile
from tpmm_jax.weights.hf_config import parse_config
from tpmm_jax.weights.hub import (
    DESCRIPTION_FILES,
    OTHER_WEIGHTS,
    TRAJECTORY_STEP,
    WEIGHT_FILES,
    fetch,
    is_hub_id,
)
from tpmm_jax.weights.huggingface import (
    SafetensorsDirectory,
    check_tensors,
    read_params,
)
from tpmm_jax.weights.peft import AdapterDirectory, is_adapter

NAME_BASE = (
    "Name another model as the adapter's base, in full precision if this one is "
    "quantised: --base BASE of a command, model.base of a config, base=... in Python"
)


@dataclass(frozen=True)
class Model:
    """A decoder with its parameters and, where it has one, its tokenizer.

    Attributes:
      decoder: architecture, numerics and mesh.
      params: nested dict of jax.Array.
      tokenizer: a transformers tokenizer, or None.
      origin: where it came from: "source" and, for a hub id, the "commit"; for a PEFT
        adapter whose base was given, that model's origin as "base".
      generation: what its generation_config.json holds, for whoever loads the model
        once it is saved; nothing here samples by it.
    """

    decoder: Decoder
    params: Params
    tokenizer: Any = None
    origin: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config


@dataclass(frozen=True)
class Source:
    """A model that was found and understood, its weights not read yet.

    Attributes:
      read: returns the parameters in a dtype, on the decoder's mesh. Only this
        downloads a hub repository's weights.
      adapter: of a PEFT directory: the parts of the policy. None for all others, a
        step of a LoRA run among them, which is read as the merged policy.
      generation: as of ``Model``.
    """

    config: ModelConfig
    tokenizer: Any
    origin: dict[str, Any]
    read: Callable[[Decoder, str], Params]
    adapter: "AdapterSource | None" = None
    generation: dict[str, Any] = field(default_factory=dict)

    def model(self, decoder: Decoder, params: Params) -> Model:
        """Returns the model with these parameters of it, as they were read or cast."""
        return Model(decoder, params, self.tokenizer, self.origin, self.generation)


@dataclass(frozen=True)
class AdapterSource:
    """Adapters and the model under them, not read yet.

    Attributes:
      base: the model under them.
      read: returns the adapters, float32, on the decoder's mesh.
    """

    lora: LoraConfig
    base: Source
    read: Callable[[Decoder], Params]


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
        ("workdir/trajectory@3"), a run's workdir: its newest policy, or a PEFT
        directory or hub id: its LoRA is added to the weights.
      revision: a hub id's branch, tag or commit; refused for anything else.
      dtype: of parameters and computation, "float32" (default) or "bfloat16".
      mesh: where the parameters lie; None: the default device.
      base: the model under a PEFT adapter, if not the one that it names.

    Raises:
      BadInput: nothing there, or something this library cannot run faithfully.
    """
    dtype = check_dtype(dtype or "float32")
    found = resolve(source, revision, base)
    decoder = Decoder(found.config, compute_dtype=dtype, mesh=mesh)
    return found.model(decoder, found.read(decoder, dtype))


def resolve(
    source: str | os.PathLike,
    revision: str | None = None,
    base: str | os.PathLike | None = None,
) -> Source:
    """Finds a model, reads its config and tokenizer; see ``load``."""
    given = None if base is None else os.fspath(base)
    return resolve_all([os.fspath(source)], given, revision)[0]


def resolve_all(
    sources: Sequence[str], base: str | None = None, revision: str | None = None
) -> list[Source]:
    """Returns several models; the base is that of all PEFT adapters among them."""
    found = [_resolve(source, revision, base) for source in sources]
    if base is not None and not any(source.adapter for source in found):
        names = ", ".join(source.origin["source"] for source in found)
        raise BadInput(
            f"the base {base} goes with a PEFT adapter, and there is none "
            f"among {names}; leave the base out"
        )
    return found


def _resolve(name: str, revision: str | None, base: str | None) -> Source:
    if revision is not None and not is_hub_id(name):
        raise BadInput(f"revision={revision!r} is for a hub id; {name} is a local path")
    if match := TRAJECTORY_STEP.fullmatch(name):
        return _resolve_step(pathlib.Path(match["workdir"] or "."), int(match["step"]))
    origin = {"source": name}
    if name.endswith(".gguf"):
        file = GGUFFile(name)
        config = parse_config(file.config, name)
        check_tensors(file, config)
        return Source(
            config, file.tokenizer(), origin, functools.partial(read_params, file)
        )
    if is_hub_id(name):
        return _resolve_hub(name, revision, base)
    directory = pathlib.Path(name)
    if (workdir := run_workdir(directory)) is not None:
        return _resolve_step(workdir, None)
    if is_adapter(directory):
        return _resolve_adapter(directory, origin, base)
    config, tokenizer = read_config(directory), read_tokenizer(directory)
    tensors = SafetensorsDirectory(directory)
    check_tensors(tensors, config)
    read = functools.partial(read_params, tensors)
    generation = read_generation(directory)
    return Source(config, tokenizer, origin, read, generation=generation)


def _resolve_hub(name: str, revision: str | None, base: str | None) -> Source:
    directory, commit = fetch(name, revision, DESCRIPTION_FILES)
    if is_adapter(directory):
        directory, _ = fetch(name, commit, WEIGHT_FILES, ignore=OTHER_WEIGHTS)
        return _resolve_adapter(directory, {"source": name, "commit": commit}, base)

    def read(decoder: Decoder, dtype: str) -> Params:
        # The commit, not the revision, which may have moved on since.
        folder, _ = fetch(name, commit, WEIGHT_FILES, ignore=OTHER_WEIGHTS)
        return read_params(SafetensorsDirectory(folder), decoder, dtype)

    origin = {"source": name, "commit": commit}
    config, tokenizer = read_config(directory), read_tokenizer(directory)
    generation = read_generation(directory)
    return Source(config, tokenizer, origin, read, generation=generation)


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
        under = resolve(name, revision if is_hub_id(name) else None)
    except BadInput as error:
        raise BadInput(f"{what}, which cannot be used: {error}\n{NAME_BASE}") from None
    if under.adapter is not None:
        raise BadInput(f"{what}, which is an adapter too. {NAME_BASE}")
    if base is not None:
        origin = origin | {"base": under.origin}
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


def run_workdir(directory: pathlib.Path) -> pathlib.Path | None:
    """Returns the workdir if this is a run's, or the trajectory folder in one."""
    for workdir in (directory, directory.parent):
        inside = workdir == directory or directory.name == "trajectory"
        if inside and all((workdir / x).is_dir() for x in ("trajectory", "model")):
            return workdir
    return None


def committed_steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps of a run's trajectory, all of them whole.

    Raises:
      BadInput: no run, or none committed yet.
      CorruptCheckpoint: one of them is damaged; leaving it out would hide that.
    """
    steps, damaged = _steps(workdir)
    if damaged:
        raise _damaged(workdir, *min(damaged.items()))
    if not steps:
        raise BadInput(f"{workdir}/trajectory holds no policy yet; has the run begun?")
    return steps


def _steps(workdir: pathlib.Path) -> tuple[list[int], dict[int, str]]:
    """Returns the whole steps, and the damaged ones with what is wrong."""
    if not (workdir / "trajectory").is_dir():
        raise BadInput(f"{workdir} holds no trajectory; is it a run's workdir?")
    with Trajectory(workdir / "trajectory", read_only=True) as trajectory:
        return trajectory.steps(), trajectory.damaged()


def _damaged(workdir: pathlib.Path, step: int, why: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        f"{workdir}/trajectory@{step} was committed, but is damaged: {why}. Restore "
        "it from a copy, or name the other steps one by one"
    )


def _resolve_step(workdir: pathlib.Path, wanted: int | None) -> Source:
    """A step of a run's trajectory; None: the newest."""
    if wanted is None:
        step = committed_steps(workdir)[-1]
    else:
        step, (steps, damaged) = wanted, _steps(workdir)
        if step in damaged:
            raise _damaged(workdir, step, damaged[step])
        if step not in steps:
            raise BadInput(f"{workdir}/trajectory@{step}: it holds the steps {steps}")

    def read(decoder: Decoder, dtype: str) -> Params:
        with Trajectory(workdir / "trajectory", read_only=True) as trajectory:
            if trajectory.holds_adapters():
                trajectory.base = adapters_base(workdir, decoder)
            params = trajectory.restore(step, decoder.abstract_params("float32"))
        return jax.tree.map(lambda x: x.astype(dtype), params)

    folder = workdir / "model"
    check_folder(folder)
    origin = {"source": f"{workdir}/trajectory@{step}"}
    config = read_config(folder)
    _check_stored(workdir, step, config)
    tokenizer, generation = read_tokenizer(folder), read_generation(folder)
    return Source(config, tokenizer, origin, read, generation=generation)


def _check_stored(workdir: pathlib.Path, step: int, config: ModelConfig) -> None:
    """Refuses a model/config.json whose sizes are not those of a stored step."""
    with Trajectory(workdir / "trajectory", read_only=True) as trajectory:
        held = _shapes(trajectory.abstract(step))
    wanted = _shapes(Decoder(config).abstract_params())
    wrong = [x for x in {**wanted, **held} if wanted.get(x) != held.get(x)]
    if wrong:
        name = wrong[0]
        raise BadInput(
            f"{workdir}/model/config.json is not that of the run: it asks for {name} "
            f"of shape {wanted.get(name)}, trajectory@{step} holds {held.get(name)}; "
            "restore the file from a copy"
        )


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def adapters_place(workdir: pathlib.Path) -> tuple[str, str | None]:
    """Returns the name and the revision of the model under a run's adapters.

    It is where the run found it, or where WORKDIR/base links to; a link to the PEFT
    directory that the run began with means the model under that one.
    """
    link = workdir / "base"
    if os.path.lexists(link):
        name = os.path.realpath(link)
        linked = pathlib.Path(name)
        return AdapterDirectory(linked).base() if is_adapter(linked) else (name, None)
    with Trajectory(workdir / "trajectory", read_only=True) as trajectory:
        record = trajectory.meta(0)["base"]
    if commit := record.get("commit"):
        return record["source"], commit
    return str(workdir / record["source"]), None


def adapters_base(workdir: pathlib.Path, decoder: Decoder) -> Base:
    """Returns the weights under a run's adapters, not read yet."""
    name, revision = adapters_place(workdir)
    link = workdir / "base"
    advice = f"put it back, or make {link} a link to where those weights are now"

    def read() -> Params:
        return resolve(name, revision).read(decoder, "float32")

    return Base(read, name, advice)


def check_dtype(dtype: Any) -> str:
    """Returns "float32" or "bfloat16" for any spelling of them."""
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in ("float32", "bfloat16"):
        raise BadInput(f"dtype is {name}; wanted float32 or bfloat16")
    return name
