"""A model in memory as a Hugging Face directory, whole or not at all."""

import contextlib
import os
import pathlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from tpmm_jax.errors import BadInput
from tpmm_jax.merging import FAINT, faint_text
from tpmm_jax.store import check_space, check_writable
from tpmm_jax.store.files import storage_errors
from tpmm_jax.weights.description import write_description
from tpmm_jax.weights.huggingface import write_params
from tpmm_jax.weights.loading import check_dtype
from tpmm_jax.weights.source import Model


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

    >>> model = tpmm.load("my-model")
    >>> tpmm.save(model, "copy", dtype="bfloat16")
    >>> (pathlib.Path("copy") / "config.json").exists()
    True

    Args:
      dtype: of the weights, "float32" or "bfloat16"; None: as they are in memory.
      max_shard_bytes: weights above this are split over several files.
      files: further text files, by name.

    Raises:
      BadInput: the directory holds something already.
      StorageError: the disk refuses.
    """
    params = model.params
    if dtype is not None:
        wanted = check_dtype(dtype)
        params = jax.tree.map(lambda x: x.astype(wanted), params)
    dtype = jax.tree.leaves(params)[0].dtype.name
    ratio = model.origin.get("signal_to_rounding_bfloat16", 0.0)
    # 0: the merge is model 0, or this is not a merge.
    if dtype == "bfloat16" and 0 < ratio < FAINT:
        instead = "keep its parameters, and save them, in float32"
        change = "its change to model 0"
        text = faint_text(ratio, dtype, "the merge", change, instead)
        warnings.warn(text, stacklevel=2)
    with whole_directory(directory) as whole, storage_errors(directory):
        write_description(model.config, model.tokenizer, dtype, whole, model.generation)
        write_params(params, model.config, whole, max_shard_bytes=max_shard_bytes)
        for name, text in (files or {}).items():
            (whole / name).write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_directory(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a new folder that takes the directory's name once it is written.

    Raises:
      BadInput: the directory holds something already.
      StorageError: the disk refuses the folder; what is written there is the caller's.
    """
    directory = pathlib.Path(directory)
    check_output(directory)
    with storage_errors(directory):
        temporary = tempfile.TemporaryDirectory(dir=directory.parent, prefix=".saving-")
    with temporary as folder:
        whole = pathlib.Path(folder) / "model"
        with storage_errors(directory):
            whole.mkdir()
        yield whole
        with storage_errors(directory):
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
