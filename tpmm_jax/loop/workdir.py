"""The folder that a training writes to: its own, and pinned to one configuration."""

import contextlib
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from tpmm_jax.config.fields import changes
from tpmm_jax.errors import BadInput
from tpmm_jax.store import RunLock, check_writable
from tpmm_jax.store.files import read_json, write_json

CONFIG = "config.json"


@contextlib.contextmanager
def open_workdir(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a folder: it can be written to, and no other process trains in it.

    Raises:
      BadInput, StorageError: it is in use, or its disk refuses.
    """
    check_writable(workdir)
    with RunLock(workdir):
        yield


def check_unchanged(
    workdir: pathlib.Path, config: Mapping[str, Any], may_change: Collection[str]
) -> None:
    """Raises BadInput if the folder is pinned to another configuration.

    Args:
      config: in its nested JSON form.
      may_change: dotted names of fields that may differ.
    """
    changed = changes(read_json(workdir / CONFIG), config, may_change)
    if changed:
        raise BadInput(
            f"{workdir} holds a run of another configuration:\n  "
            + "\n  ".join(changed)
            + "\nChange it back to continue that run, or choose another --workdir"
        )


def pin_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Writes the configuration that later starts are compared with."""
    write_json(workdir / CONFIG, config)
