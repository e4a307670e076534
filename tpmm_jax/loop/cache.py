"""Arrays on the disk, under a key of what they were computed from."""

import pathlib
from collections.abc import Mapping

import numpy as np

from tpmm_jax.store.digests import is_finished, read_npz, write_npz


def write_cache(path: pathlib.Path, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays and their key."""
    write_npz(path, {**arrays, "key": np.array(key)})


def read_cache(path: pathlib.Path, key: str) -> dict[str, np.ndarray]:
    """Returns arrays that were written under this very key; {} if there are none.

    Raises:
      CorruptCheckpoint: the file is not what was written.
    """
    arrays = read_npz(path) if is_finished(path) else {}
    return arrays if str(arrays.pop("key", "")) == key else {}
