"""What the commands that train share: their options, and how a stopped run goes on."""

import argparse
import hashlib
import pathlib
import shlex
from collections.abc import Callable, Sequence

import tpmm_jax
from tpmm_jax.errors import Stopped
from tpmm_jax.hosts import agree_same, count
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.versions import versions


def code_digest() -> str:
    """Returns a SHA-256 of the package's own files."""
    root, found = pathlib.Path(tpmm_jax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return found.hexdigest()


def run_in_workdir(
    words: Sequence[str],
    args: argparse.Namespace,
    console: RunConsole,
    run: Callable[[pathlib.Path], None],
) -> int:
    """Returns the exit code of a training; one that is stopped says how it goes on.

    Args:
      words: the whole command as it was given.
      run: called with the workdir.
    """
    if count() > 1:
        agree_same({"tpmm_jax": code_digest(), "libraries": versions()})
    workdir = pathlib.Path(args.workdir or f"runs/{pathlib.Path(args.config).stem}")
    try:
        run(workdir)
    except Stopped as error:
        again = shlex.join(words)
        console.note(f"{error}; its state is saved. To continue: {again}")
        return error.exit_code
    except KeyboardInterrupt:
        console.note("stopped; what was finished is kept. The same command continues")
        return Stopped.exit_code
    return 0
