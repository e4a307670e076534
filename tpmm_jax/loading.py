"""From a name to a model in memory, and back to a Hugging Face directory."""

import functools
import json
import os
import pathlib
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput, CorruptCheckpoint
from tpmm_jax.merging import FAINT, faint_text
from tpmm_jax.models import Decoder, ModelConfig
from tpmm_jax.store import Trajectory, check_space, check_writable
from tpmm_jax.store.files import storage_errors
from tpmm_jax.weights.gguf import GGUFFile
from tpmm_jax.weights.hf_config import as_ids, parse_config, write_config
from tpmm_jax.weights.huggingface import (
    SafetensorsDirectory,
    check_names,
    read_params,
    write_params,
)
from tpmm_jax.weights.names import names

# What a hub repository is asked for: nothing that could be code or a pickle.
DESCRIPTION_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
WEIGHT_FILES = ("*.safetensors",)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
TRAJECTORY_STEP = re.compile(r"(?P<workdir>.*/)?trajectory@(?P<step>\d+)")


@dataclass(frozen=True)
class Model:
    """A decoder with its parameters and, where it has one, its tokenizer.

    Attributes:
      decoder: architecture, numerics and mesh.
      params: nested dict of jax.Array.
      tokenizer: a transformers tokenizer, or None.
      origin: where it came from: "source" and, for a hub id, the "commit".
    """

    decoder: Decoder
    params: Params
    tokenizer: Any = None
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config


@dataclass(frozen=True)
class Source:
    """A model that was found and understood, its weights not read yet.

    Attributes:
      read: returns the parameters in a dtype, on the decoder's mesh. Only this
        downloads a hub repository's weights.
    """

    config: ModelConfig
    tokenizer: Any
    origin: dict[str, Any]
    read: Callable[[Decoder, str], Params]


def load(
    source: str | os.PathLike,
    revision: str | None = None,
    dtype: Any = None,
    mesh: Mesh | None = None,
) -> Model:
    """Loads a model.

    Args:
      source: a Hugging Face directory (safetensors, one file or a sharded index),
        a .gguf file, a hub id ("org/name"), a step of a run's trajectory
        ("workdir/trajectory@3"), or a run's workdir: its newest policy.
      revision: a hub id's branch, tag or commit; refused for anything else.
      dtype: of parameters and computation, "float32" (default) or "bfloat16".
      mesh: where the parameters lie; None: the default device.

    Raises:
      BadInput: nothing there, or something this library cannot run faithfully.
    """
    dtype = check_dtype(dtype or "float32")
    found = resolve(source, revision)
    decoder = Decoder(found.config, compute_dtype=dtype, mesh=mesh)
    return Model(decoder, found.read(decoder, dtype), found.tokenizer, found.origin)


def resolve(source: str | os.PathLike, revision: str | None = None) -> Source:
    """Finds a model, reads its config and tokenizer; see ``load``."""
    name = os.fspath(source)
    if revision is not None and not is_hub_id(name):
        raise BadInput(f"revision={revision!r} is for a hub id; {name} is a local path")
    if match := TRAJECTORY_STEP.fullmatch(name):
        return _resolve_step(pathlib.Path(match["workdir"] or "."), int(match["step"]))
    origin = {"source": name}
    if name.endswith(".gguf"):
        file = GGUFFile(name)
        config = parse_config(file.config, name)
        return Source(
            config, file.tokenizer(), origin, functools.partial(read_params, file)
        )
    if is_hub_id(name):
        return _resolve_hub(name, revision)
    directory = pathlib.Path(name)
    if (workdir := run_workdir(directory)) is not None:
        return _resolve_step(workdir, None)
    config, tokenizer = read_config(directory), read_tokenizer(directory)
    tensors = SafetensorsDirectory(directory)
    check_names(tensors, names(config), config)
    return Source(config, tokenizer, origin, functools.partial(read_params, tensors))


def _resolve_hub(name: str, revision: str | None) -> Source:
    directory, commit = fetch(name, revision, DESCRIPTION_FILES)

    def read(decoder: Decoder, dtype: str) -> Params:
        # The commit, not the revision, which may have moved on since.
        folder, _ = fetch(name, commit, WEIGHT_FILES, ignore=("*/*",))
        return read_params(SafetensorsDirectory(folder), decoder, dtype)

    origin = {"source": name, "commit": commit}
    return Source(read_config(directory), read_tokenizer(directory), origin, read)


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
      CorruptCheckpoint: one of them is damaged; leaving it out would pass for less.
    """
    return _all_whole(workdir, *_steps(workdir))


def _all_whole(
    workdir: pathlib.Path, steps: list[int], damaged: dict[int, str]
) -> list[int]:
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
        f"{workdir}/trajectory@{step} was committed, but is damaged: {why}. Put it "
        "back from a copy, or name the other steps one by one"
    )


def _resolve_step(workdir: pathlib.Path, step: int | None) -> Source:
    """A step of a run's trajectory; None: the newest."""
    steps, damaged = _steps(workdir)
    wanted = _all_whole(workdir, steps, damaged)[-1] if step is None else step
    if wanted in damaged:
        raise _damaged(workdir, wanted, damaged[wanted])
    if wanted not in steps:
        raise BadInput(f"{workdir}/trajectory@{wanted}: it holds the steps {steps}")

    def read(decoder: Decoder, dtype: str) -> Params:
        with Trajectory(workdir / "trajectory", read_only=True) as trajectory:
            params = trajectory.restore(wanted, decoder.abstract_params("float32"))
        return jax.tree.map(lambda x: x.astype(dtype), params)

    folder = workdir / "model"
    origin = {"source": f"{workdir}/trajectory@{wanted}"}
    return Source(read_config(folder), read_tokenizer(folder), origin, read)


def check_dtype(dtype: Any) -> str:
    """Returns "float32" or "bfloat16" for any spelling of them."""
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in ("float32", "bfloat16"):
        raise BadInput(f"dtype is {name}; wanted float32 or bfloat16")
    return name


def is_hub_id(name: str) -> bool:
    """Whether ``name`` reads as org/name and nothing of that name lies on disk."""
    looks = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
    return (
        looks
        and not name.endswith(".gguf")
        and not TRAJECTORY_STEP.fullmatch(name)
        and name.split("/")[0] not in (".", "..")
        and not os.path.exists(name)
    )


def fetch(
    name: str, revision: str | None, files: Sequence[str], ignore: Sequence[str] = ()
) -> tuple[pathlib.Path, str]:
    """Downloads files of a hub repository.

    Args:
      name: "org/name".
      revision: a branch, tag or commit; None: the default branch.
      files, ignore: patterns of the wanted files, and of those left out of them.

    Returns:
      The snapshot's folder and the resolved commit.

    Raises:
      BadInput: no such repository, or it cannot be reached.
    """
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(files),
            ignore_patterns=list(ignore),
        )
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise BadInput(
            f"{name}: neither a local directory nor a hub repository that can be "
            f"fetched ({type(error).__name__}: {first}); check the name, the network "
            "and, for a gated model, `hf auth login`"
        ) from None
    return pathlib.Path(path), pathlib.Path(path).name


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns a file's JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds a {type(content).__name__}, wanted an object")
    return content


def read_config(directory: pathlib.Path) -> ModelConfig:
    """Returns the ModelConfig of a directory, its generation config's EOS ids too."""
    if not directory.is_dir():
        raise BadInput(f"{directory}: no such directory")
    path = directory / "config.json"
    if not path.exists():
        raise BadInput(f"{directory} holds no config.json; is it a model's directory?")
    config = parse_config(read_json(path), str(path))
    generation = directory / "generation_config.json"
    if generation.exists():
        more = as_ids(read_json(generation).get("eos_token_id"), str(generation))
        config = replace(config, eos_ids=tuple(dict.fromkeys((*config.eos_ids, *more))))
    return config


def read_tokenizer(directory: pathlib.Path) -> Any:
    """Returns the directory's tokenizer, or None where there is none."""
    if not any((directory / name).exists() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:
        raise BadInput(f"{directory}: its tokenizer cannot be read: {error}") from None


def end_ids(config: ModelConfig, tokenizer: Any) -> tuple[int, ...]:
    """Returns every id that ends a completion: the config's and the tokenizer's."""
    ids = set(config.eos_ids)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return tuple(sorted(ids))


def check_output(directory: str | os.PathLike, need: int = 0) -> None:
    """Refuses, before any work, a directory that could not be written in the end.

    Args:
      need: bytes that must be free there.

    Raises:
      BadInput: it holds something already.
      StorageError: the folder around it cannot be written, or is too full.
    """
    directory = pathlib.Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInput(f"{directory} exists and is not empty; choose another")
    check_writable(directory.absolute().parent)
    check_space(directory, need)


def save(
    model: Model,
    directory: str | os.PathLike,
    *,
    dtype: Any = None,
    max_shard_bytes: int = 4 * 2**30,
    files: Mapping[str, str] | None = None,
) -> None:
    """Writes a Hugging Face directory that transformers loads.

    The directory appears whole or not at all; an existing one is refused unless
    it is empty.

    Warns (UserWarning) where a merge's change would be rounded away by bfloat16.

    Args:
      dtype: of the weights, "float32" or "bfloat16"; None: as they are in memory.
      max_shard_bytes: weights above this are split over several files.
      files: further text files, by name.

    Raises:
      BadInput: the directory holds something already.
      StorageError: the disk refuses.
    """
    directory = pathlib.Path(directory)
    check_output(directory)
    params = model.params
    if dtype is not None:
        wanted = check_dtype(dtype)
        params = jax.tree.map(lambda x: x.astype(wanted), params)
    dtype = jax.tree.leaves(params)[0].dtype.name
    ratio = model.origin.get("signal_to_rounding_bfloat16", 0.0)
    # 0: the merge is model 0, or this is no merge.
    if dtype == "bfloat16" and 0 < ratio < FAINT:
        instead = "keep its parameters, and save them, in float32"
        change = "its change to model 0"
        text = faint_text(ratio, dtype, "the merge", change, instead)
        warnings.warn(text, stacklevel=2)
    with (
        storage_errors(directory),
        tempfile.TemporaryDirectory(dir=directory.parent, prefix=".saving-") as tmp,
    ):
        whole = pathlib.Path(tmp) / "model"
        whole.mkdir()
        write_description(model.config, model.tokenizer, dtype, whole)
        write_params(params, model.config, whole, max_shard_bytes=max_shard_bytes)
        for name, text in (files or {}).items():
            (whole / name).write_text(text, encoding="utf-8")
        for path in whole.iterdir():
            # safetensors leaves its files for the owner's eyes alone.
            path.chmod(0o666 & ~_umask())
        if directory.exists():
            directory.rmdir()
        whole.rename(directory)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_description(
    config: ModelConfig, tokenizer: Any, dtype: str, directory: pathlib.Path
) -> None:
    """Writes what a model's directory holds beside the weights."""
    hf = write_config(config, dtype)
    (directory / "config.json").write_text(json.dumps(hf, indent=2) + "\n")
    ids = {key: hf[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    # Where the tokenizer ends what the config does not: generation ends there as well.
    ends = list(end_ids(config, tokenizer))
    ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    ids = {key: value for key, value in ids.items() if value is not None}
    text = json.dumps(ids, indent=2) + "\n"
    (directory / "generation_config.json").write_text(text)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
