"""Errors a user can act on, each with the exit code of the command line.

Exit codes: 0 done, 1 other, 2 bad input, 3 corrupt checkpoint, 4 storage,
75 stopped on request (the same command continues).
"""

import difflib
from collections.abc import Sequence


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
