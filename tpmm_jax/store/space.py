"""Is there room for the run, and may it write where it wants to?"""

import os
import pathlib
import shutil

import jax
import numpy as np

from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput, StorageError
from tpmm_jax.hosts import once
from tpmm_jax.store.files import PathLike, storage_errors, write_file

STORAGES = ("float32", "bfloat16_delta", "lora")
# Compression is not counted on; what is counted on may grow by file overheads.
_HEADROOM = 1.2
# Parameters and AdamW's two moments.
_TREES_IN_WORK = 3


def check_storage(storage: str) -> None:
    """Refuses a storage that is not one of `STORAGES`.

    Raises:
      BadInput: names the choices.
    """
    if storage not in STORAGES:
        raise BadInput(f"storage is {storage!r}; wanted one of {', '.join(STORAGES)}")


def disk_need(
    params_abstract: Params, *, iterations: int, storage: str, work_copies: int = 3
) -> int:
    """Bytes that a run's trajectory and work checkpoints take, uncompressed.

    Args:
      params_abstract: nested dict of arrays or jax.ShapeDtypeStruct.
      iterations: policies that follow theta_0; the trajectory holds one more.
      storage: "float32", "bfloat16_delta", or "lora" (params_abstract: the adapters).
      work_copies: training states on the disk at once: two kept and one being
        written. Each counts as three trees (parameters and two Adam moments).

    Returns:
      Bytes.

    Raises:
      BadInput: an unknown storage, or a negative number.
    """
    check_storage(storage)
    if iterations < 0 or work_copies < 0:
        raise BadInput(
            f"iterations is {iterations} and work_copies is {work_copies}; wanted "
            "numbers >= 0"
        )
    whole = later = 0
    for leaf in jax.tree.leaves(params_abstract):
        nbytes = int(np.prod(leaf.shape, dtype=np.int64)) * leaf.dtype.itemsize
        whole += nbytes
        halved = storage == "bfloat16_delta" and leaf.dtype == np.float32
        later += nbytes // 2 if halved else nbytes
    return whole + iterations * later + work_copies * _TREES_IN_WORK * whole


def check_writable(directory: PathLike) -> None:
    """Writes, flushes, renames and removes a small file in `directory`.

    Raises:
      StorageError: any of these fails; names the folder.
    """

    def act() -> None:
        probe = pathlib.Path(directory) / f".probe-{os.getpid()}"
        with storage_errors(directory):
            write_file(probe, lambda file: file.write(b"probe"))
            probe.unlink()

    once(act, f"probe {directory}")


def check_space(directory: PathLike, need: int) -> None:
    """Refuses to start a run that would fill the disk.

    Args:
      directory: where the run writes; need not exist yet.
      need: bytes, as `disk_need` gives.

    Raises:
      StorageError: 1.2 x need exceeds the free space; names folder, need and free.
    """
    once(lambda: _check_space(directory, need), f"space of {directory}")


def _check_space(directory: PathLike, need: int) -> None:
    directory = pathlib.Path(directory).absolute()
    existing = next(
        (d for d in (directory, *directory.parents) if d.exists()), directory
    )
    with storage_errors(directory):
        free = shutil.disk_usage(existing).free
    if need * _HEADROOM > free:
        raise StorageError(
            f"{directory}: the run needs {need / 1e9:.2f} GB (with 20 % to spare "
            f"{need * _HEADROOM / 1e9:.2f} GB) and {free / 1e9:.2f} GB are free; free "
            "some space, choose another folder, keep fewer iterations, or store "
            'differences (storage "bfloat16_delta")'
        )
