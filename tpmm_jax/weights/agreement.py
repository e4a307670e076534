"""Whether all processes read the same weights: a host may hold an older copy."""

import hashlib
import pathlib
from collections.abc import Iterable

from tpmm_jax.hosts import agree_same, count

# Of each file its size, its beginning, and a little of every so many bytes: what is
# trained further differs everywhere.
BEGINNING, SAMPLE, EVERY = 2**16, 2**10, 2**20


def agree_on_files(files: Iterable[pathlib.Path], name: str) -> None:
    """Refuses processes whose files of weights differ; one process reads nothing.

    Args:
      name: of the model, for messages.

    Raises:
      BadInput: names the process.
    """
    if count() > 1:
        agree_same({f"the weights of {name}": sample_digest(files)})


def sample_digest(files: Iterable[pathlib.Path]) -> str:
    """Returns a SHA-256 of parts of files, in the order of their names."""
    found = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            found.update(file.read(BEGINNING))
            for place in range(EVERY, size, EVERY):
                file.seek(place)
                found.update(file.read(SAMPLE))
    return found.hexdigest()[:16]
