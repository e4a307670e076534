"""What the trajectory and the work checkpoints share of Orbax.

Every manager is opened for one purpose and closed again: an open manager keeps a
list of steps in memory, and that list was measured to be wrong after a failed save.
"""

import contextlib
import logging
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from tpmm_jax.errors import BadInput, CorruptCheckpoint, StorageError, TpmmError
from tpmm_jax.hosts import is_collective
from tpmm_jax.store.files import storage_errors, sync

# Present in every step that Orbax finished, written before the final rename.
STEP_FILE = "_CHECKPOINT_METADATA"
UNFINISHED = ".orbax-checkpoint-tmp"

_NOISE = (
    "CheckpointManagerOptions.read_only=True",
    "Given directory is read only",
    "Metadata file does not exist",
)


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Drops Orbax's warnings about what is done on purpose here."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_NOISE)

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


# What Orbax's threads say of an error that the save raises.
_RAISED_TOO = (
    "_SignalingThread.run() raised",
    "in background save thread",
    "[wait_until_finished] Save Finalize thread",
)


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    """Drops the tracebacks of Orbax's threads."""
    text = record.getMessage()
    return not any(part in text for part in _RAISED_TOO)


@contextlib.contextmanager
def _without_closed_loops() -> Iterator[None]:
    """Drops what TensorStore prints when a failed save has closed its event loop.

    Its threads may do so at any time after the failure, so what drops it stays then.
    """
    before = sys.excepthook, sys.unraisablehook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        ours = threading.current_thread() is not threading.main_thread()
        if not (ours and _is_closed_loop(error)):
            before[0](kind, error, trace)

    def unraisable(found: Any) -> None:
        if not _is_closed_loop(found.exc_value):
            before[1](found)

    sys.excepthook, sys.unraisablehook = hook, unraisable
    yield
    sys.excepthook, sys.unraisablehook = before


def _is_closed_loop(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def open_manager(directory: pathlib.Path, **options: Any) -> ocp.CheckpointManager:
    """Opens an Orbax manager; what is saved or restored says how, by its ocp.args.

    Args:
      directory: absolute.
      **options: of ocp.CheckpointManagerOptions.
    """
    # Kept: a save goes on in the background after this returns.
    logging.getLogger("absl").addFilter(_is_not_raised_too)
    chosen = ocp.CheckpointManagerOptions(lightweight_initialize=True, **options)
    with _without_noise():
        return ocp.CheckpointManager(directory, options=chosen)


def read_items(directory: pathlib.Path, step: int, advice: str, **args: Any) -> Any:
    """Restores items of one step through a read-only manager.

    Args:
      directory: of the steps.
      step: one that is there.
      advice: the end of an error's message: what to do.
      **args: item name -> ocp.args.

    Raises:
      CorruptCheckpoint: whatever goes wrong that is not a lack of memory or permission.
      StorageError: the files may not be read.
    """
    where = directory / str(step)
    try:
        with (
            _without_noise(),
            open_manager(directory, read_only=True, create=False) as manager,
        ):
            return manager.restore(step, args=ocp.args.Composite(**args))
    except TpmmError:
        raise
    except PermissionError as error:
        raise StorageError(f"{where}: {error}: make the files readable") from error
    except Exception as error:
        if _out_of_memory(error) or is_collective(error):
            raise
        raise CorruptCheckpoint(
            f"step {step}, {'/'.join(args)}: {where} cannot be read "
            f"({type(error).__name__}: {first_line(error)}); {advice}"
        ) from error


def _out_of_memory(error: Exception) -> bool:
    """True if the error says nothing about the files."""
    exhausted = "RESOURCE_EXHAUSTED" in str(error)
    on_device = isinstance(error, jax.errors.JaxRuntimeError) and exhausted
    return on_device or isinstance(error, MemoryError)


def first_line(error: BaseException, limit: int = 300) -> str:
    """The first line of an error's message, not longer than `limit` characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else "no message"


@contextlib.contextmanager
def save_errors(directory: pathlib.Path, step: int | None) -> Iterator[None]:
    """Turns whatever a save raises into a StorageError that names the step's path."""
    where = directory if step is None else directory / str(step)
    try:
        with storage_errors(where), _without_closed_loops():
            yield
    except TpmmError:
        raise
    except Exception as error:
        if _out_of_memory(error) or is_collective(error):
            raise
        free = ""
        with contextlib.suppress(OSError):
            free = f", {shutil.disk_usage(directory).free / 1e9:.2f} GB are free there"
        raise StorageError(
            f"{where} could not be saved ({type(error).__name__}: "
            f"{first_line(error)}){free}; earlier steps are as they were; check space, "
            "quota and permission and run the same command again"
        ) from error


def save(
    writer: ocp.CheckpointManager, directory: pathlib.Path, step: int, args: Any
) -> None:
    """Saves a step, or starts to.

    Raises:
      StorageError: Orbax skipped it.
    """
    # Forced, for a stray folder with a higher number would otherwise make Orbax skip
    # the save and say so only in its return value.
    if not writer.save(step, args=args, force=True):
        raise StorageError(f"{directory / str(step)}: Orbax skipped the save")


def looks_whole(folder: pathlib.Path, items: Iterable[str]) -> bool:
    """True if Orbax finished this step: its own file and every item are there."""
    return (
        not folder.is_symlink()
        and (folder / STEP_FILE).is_file()
        and all((folder / item).is_dir() for item in items)
    )


def numbered(directory: pathlib.Path) -> dict[int, pathlib.Path]:
    """Entries whose name is a plain number, whatever they hold."""
    with storage_errors(directory):
        names = os.listdir(directory) if directory.is_dir() else []
    return {
        int(name): directory / name
        for name in sorted(names)
        if name.isascii() and name.isdecimal() and str(int(name)) == name
    }


def padded(directory: pathlib.Path) -> dict[int, pathlib.Path]:
    """Folders whose name is a number with or without zeros before it."""
    with storage_errors(directory):
        names = os.listdir(directory) if directory.is_dir() else []
    decimal = [name for name in sorted(names) if name.isascii() and name.isdecimal()]
    return {int(name): directory / name for name in decimal}


def file_sizes(folder: pathlib.Path) -> dict[str, int]:
    """ "relative/path" -> bytes of every file under a step's folder."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flush(folder: pathlib.Path) -> None:
    """Flushes every file and folder of a step; Orbax flushes only array data."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        sync(path)


def default_sharding() -> Sharding:
    """Where a leaf lies whose target names no sharding."""
    return SingleDeviceSharding(jax.local_devices()[0])


def abstract(name: str, leaf: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    """What Orbax is asked for: shape and sharding of a target leaf, stored dtype.

    Raises:
      BadInput: the target's sharding names no devices; names the leaf.
    """
    where = getattr(leaf, "sharding", None) or default_sharding()
    if not isinstance(getattr(where, "mesh", None), Mesh | None):
        raise BadInput(
            f"leaf {name}: the sharding {where} names no devices; wanted one over a "
            "jax.sharding.Mesh"
        )
    return jax.ShapeDtypeStruct(np.shape(leaf), dtype, sharding=where)
