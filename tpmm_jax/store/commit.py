"""Writes the folder of one step of the trajectory: whole, or not at all."""

import contextlib
import datetime
import pathlib
from typing import Any

import orbax.checkpoint as ocp

from tpmm_jax.axes import Params
from tpmm_jax.errors import StorageError
from tpmm_jax.hosts import first_only, once
from tpmm_jax.store import manager
from tpmm_jax.store.files import remove_tree, storage_errors
from tpmm_jax.store.listing import ITEMS

_DISCARDED = ".discarded-"


def save_step(
    directory: pathlib.Path,
    step: int,
    policy: Params,
    meta: dict[str, Any],
    integrity: dict[str, Any],
) -> dict[str, int]:
    """Saves a step, waits until it is on the disk, and looks whether it is there.

    Args:
      directory: the trajectory's.
      policy, meta, integrity: the step's items; see `listing.ITEMS`.

    Returns:
      "relative/path" -> bytes of its files.

    Raises:
      StorageError: the disk refuses; names the step's folder.
    """
    once(lambda: _discard(directory, step), f"discard {directory}/{step}")
    args = ocp.args.Composite(
        policy=ocp.args.StandardSave(policy),
        meta=ocp.args.JsonSave(meta),
        integrity=ocp.args.JsonSave(integrity),
    )
    try:
        with (
            manager.save_errors(directory, step),
            # Not in the background: the commit waits for it anyway, and a failure is
            # raised here.
            manager.open_manager(directory, enable_async_checkpointing=False) as writer,
        ):
            manager.save(writer, directory, step, args)
            writer.wait_until_finished()
    except BaseException:
        # One process may be the only one that failed.
        with contextlib.suppress(Exception):
            unfinished = f"{step}{manager.UNFINISHED}*"
            first_only(lambda: _remove_all(directory, unfinished))
        raise
    return once(lambda: _saved_files(directory, step), f"saved {directory}/{step}")


def _discard(directory: pathlib.Path, step: int) -> None:
    """Removes what a killed save of this step left behind."""
    with storage_errors(directory):
        folder = directory / str(step)
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        elif folder.exists():
            # One rename first: a kill must not leave half a step behind.
            folder.rename(directory / f"{_DISCARDED}{step}-{now()}")
    _remove_all(directory, f"{_DISCARDED}*")
    _remove_all(directory, f"*{manager.UNFINISHED}*")


def _remove_all(directory: pathlib.Path, pattern: str) -> None:
    for path in directory.glob(pattern):
        remove_tree(path)


def _saved_files(directory: pathlib.Path, step: int) -> dict[str, int]:
    folder = directory / str(step)
    if not manager.looks_whole(folder, ITEMS):
        raise StorageError(
            f"{folder} was saved but is missing; check the file system and run the "
            "same command again"
        )
    with storage_errors(folder):
        manager.flush(folder)
        return manager.file_sizes(folder)


def now() -> str:
    """Returns the time, UTC, in letters that a file name may have."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%M%S.%fZ")
