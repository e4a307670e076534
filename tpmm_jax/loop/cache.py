"""Arrays on the disk, under a key of what they were computed from."""

import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np

from tpmm_jax.errors import CorruptCheckpoint
from tpmm_jax.store.files import write_npz


def write_cache(path: pathlib.Path, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays and their key."""
    write_npz(path, {**arrays, "key": np.array(key)})


def read_cache(path: pathlib.Path, key: str) -> dict[str, np.ndarray]:
    """Returns arrays that were written under this very key; {} if there are none.

    Raises:
      CorruptCheckpoint: the file cannot be read.
    """
    if not path.exists():
        return {}
    try:
        with np.load(path) as file:
            if str(file["key"]) != key:
                return {}
            return {name: file[name] for name in file.files if name != "key"}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CorruptCheckpoint(
            f"{path}: {error}; delete it to compute it again"
        ) from None
