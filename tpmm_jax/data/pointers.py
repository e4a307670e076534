"""Files that git-lfs has not fetched: a few lines of text in the place of the file."""

import pathlib

from tpmm_jax.errors import BadInput

BEGINNING = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: pathlib.Path) -> None:
    """Raises BadInput for a git-lfs pointer; a file that cannot be read passes."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(len(BEGINNING))
    except OSError:
        return
    if beginning == BEGINNING:
        raise BadInput(
            f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` in "
            f"{path.parent}, or download the file"
        )
