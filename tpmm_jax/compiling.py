"""Compiled programs, kept on disk for the next start by JAX's own cache."""

import os
import pathlib
import time
from typing import Any

import jax

# What is kept beyond this, the least recently used first, is deleted.
MAX_BYTES = 2 * 2**30
# Seconds that writing a program may take.
WRITING = 60.0
# Programs that compile in less are not worth a file.
MIN_SECONDS = 0.1


def user_cache(name: str) -> pathlib.Path:
    """Returns a folder of the user's cache; it need not exist."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "tpmm_jax" / name


def keep_programs() -> pathlib.Path | None:
    """Has JAX keep what it compiles from now on, and use what an earlier process kept.

    Where JAX has a folder already (JAX_COMPILATION_CACHE_DIR), or is to keep nothing
    (JAX_ENABLE_COMPILATION_CACHE=false), nothing is changed, nor where the user's cache
    cannot be written.

    Returns:
      the folder; None: nothing was changed.
    """
    given: Any = jax.config
    if given.jax_compilation_cache_dir or not given.jax_enable_compilation_cache:
        return None
    try:
        folder = user_cache("programs")
        # JAX runs what it finds there: it is the user's alone.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _drop_halves(folder)
    # RuntimeError: there is no home.
    except (OSError, RuntimeError):
        return None
    if not os.access(folder, os.W_OK):
        return None
    for name, usual, value in (
        ("jax_compilation_cache_max_size", -1, MAX_BYTES),
        ("jax_persistent_cache_min_compile_time_secs", 1.0, MIN_SECONDS),
    ):
        if getattr(given, name) == usual:
            jax.config.update(name, value)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _drop_halves(folder: pathlib.Path) -> None:
    """Deletes programs whose writer was killed: JAX would never write them again.

    It writes a program, then the time of its last use; others may be writing now.
    """
    for program in folder.glob("*-cache"):
        used = program.with_name(program.name.removesuffix("cache") + "atime")
        if not used.exists() and time.time() - program.stat().st_mtime > WRITING:
            program.unlink(missing_ok=True)
