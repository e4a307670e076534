"""Errors a user can act on, each with the exit code of the command line.

Exit codes: 0 done, 1 other, 2 bad input, 3 corrupt checkpoint, 4 storage,
75 stopped on request (the same command continues).
"""

import difflib
import os
import pathlib
import re
import sysconfig
import traceback
from collections.abc import Sequence

# pathlib has made one slash of two.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# Where code lies that the user did not write.
_INSTALLED = tuple(
    os.path.join(folder, "")
    for folder in (
        os.path.dirname(os.path.abspath(__file__)),
        *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    )
)
# Lines of the user's code that a message shows, those nearest to the error.
_FRAMES = 4


class TpmmError(Exception):
    """An error whose message says what came, what was wanted and what to do."""

    exit_code = 1


class BadInput(TpmmError, ValueError):
    """A config, a file, a row, a model or a scorer that cannot be used as it is."""

    exit_code = 2


class NotFinite(TpmmError):
    """A loss, gradient, log-probability or weight that is NaN or infinite."""


class CorruptCheckpoint(TpmmError):
    """A stored step that does not hold what was written to it."""

    exit_code = 3


class StorageError(TpmmError, OSError):
    """A disk that is full, read-only or otherwise refuses a write."""

    exit_code = 4


class Stopped(TpmmError):
    """The run was asked to stop (SIGTERM, Ctrl-C) and saved its state."""

    exit_code = 75


def nearest(wrong: str, names: Sequence[str]) -> str:
    """Returns a hint: the nearest names, or else all of them."""
    near = difflib.get_close_matches(wrong, names, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {', '.join(near)}?"
    return f"; its fields are {', '.join(names)}" if names else ""


def refuse_address(name: str | os.PathLike[str], what: str) -> None:
    """Refuses gs://bucket/run and the like, of which pathlib makes a folder gs:.

    Args:
      what: names the option or field.

    Raises:
      BadInput: says what to do.
    """
    if _ADDRESS.match(os.fspath(name)):
        raise BadInput(
            f"{what} {os.fspath(name)}: an address, and wanted is a path. Copy what is "
            "read to a disk first, and what is written away once it is finished: a run "
            "locks, appends to and renames its files, which buckets do not. Hosts of "
            "one run share a disk that all mount (NFS, Filestore, Lustre)"
        )


def nearest_path(path: str | os.PathLike[str]) -> str:
    """Returns a hint: the nearest name where a path leads to nothing; else ""."""
    whole = there = pathlib.Path(path)
    while not there.parent.is_dir() and there != there.parent:
        there = there.parent
    try:
        names = [entry.name for entry in there.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(there.name, names, n=1)
    if there.name in names or not near:
        return ""
    return f"; did you mean {there.with_name(near[0]) / whole.relative_to(there)}?"


def user_lines(error: BaseException) -> str:
    """Returns the lines of the user's own code that led to an error, each below ""."""
    own = {
        (frame.filename, frame.lineno): frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*_INSTALLED, "<"))
    }
    return "".join(
        f'\n  File "{frame.filename}", line {frame.lineno}, in {frame.name}'
        f"\n    {frame.line}"
        for frame in list(own.values())[-_FRAMES:]
    )
