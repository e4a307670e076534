"""A command line's arguments and its end: nearest options, exit codes."""

import argparse
import contextlib
import io
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from tpmm_jax import hosts
from tpmm_jax.compiling import keep_programs
from tpmm_jax.errors import BadInput, Stopped, TpmmError, refuse_address
from tpmm_jax.log.console import RunConsole
from tpmm_jax.stopping import ends_with, keyboard_as_before, watched
from tpmm_jax.stopping.guard import GUARD


def timeout_of(args: argparse.Namespace, default: float | None) -> float | None:
    """Returns what --timeout says; None: a function may take for ever.

    Raises:
      BadInput: it is not a number above 0.
    """
    if args.timeout is None:
        return default
    if args.timeout.lower() == "none":
        return None
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(args.timeout)) < math.inf:
            return seconds
    raise BadInput(f"--timeout {args.timeout}: wanted seconds above 0, or none")


def flag(name: str) -> str:
    """Returns the option that sets an argument or a field, for messages.

    >>> flag("top_p")
    '--top-p'
    """
    return f"--{name.replace('_', '-')}"


def check_least(args: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Refuses numbers that are too small; an option that was not given is None.

    Raises:
      BadInput: all of them, one line each.
    """
    faults = []
    for name, bound in least.items():
        value = getattr(args, name)
        if value is not None and value < bound:
            wanted = f"at least {bound}" if bound else "0 or more"
            faults.append(f"{flag(name)} is {value}; use {wanted}")
    if faults:
        raise BadInput("\n".join(faults))


def check_all(*checks: Callable[[], Any]) -> list[Any]:
    """Returns what every check returns, once none of them finds fault.

    Raises:
      BadInput: all faults, one line each.
    """
    found, faults = [], []
    for check in checks:
        try:
            found.append(check())
        except BadInput as error:
            faults.append(str(error))
    if faults:
        raise BadInput("\n".join(faults))
    return found


def escape_unprintable() -> None:
    """Has what the output's encoding lacks written as an escape, not raised."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def guarded(
    work: Callable[[argparse.Namespace, RunConsole], int | None],
    args: argparse.Namespace,
    *,
    result_alone: bool = False,
    needs_reader: bool = False,
    own_keyboard: bool = False,
    many: bool = False,
) -> int:
    """Returns the exit code of ``work``; errors are said without a traceback.

    A signal ends it with 75, in five seconds unless it leaves the time to ``work``.

    Args:
      work: called with the command line and the console.
      result_alone: whether remarks go to the standard error, so that the standard
        output can be piped.
      needs_reader: whether a closed standard output ends the work early; else its
        reader (head, less) has just seen enough.
      own_keyboard: whether ``work`` gives Ctrl-C a meaning of its own.
      many: whether many processes may run it, which then end alike.
    """
    console = RunConsole(sys.stderr if result_alone else None)  # type: ignore[arg-type]
    keyboard = keyboard_as_before if own_keyboard else contextlib.nullcontext
    with watched(console.note, console.stop_bars), keyboard():
        try:
            for option in ("workdir", "output"):
                if path := getattr(args, option, None):
                    refuse_address(path, f"--{option}")
            if many:
                hosts.join(args)
            else:
                hosts.refuse_many("this command")
        except TpmmError as error:
            stopped = error.exit_code == Stopped.exit_code
            (console.note if stopped else console.error)(str(error))
            return error.exit_code
        except KeyboardInterrupt:
            code, text = hosts.end(Stopped.exit_code, "stopped")
            console.note(text)
            hosts.leave(code)
            return code
        if hosts.index() > 0:
            # Process 0 speaks for all.
            console = RunConsole(io.StringIO(), io.StringIO())
            GUARD.say = console.note
        # Of several processes one may find a program where another does not, which
        # then waits for the first one's share of compiling it.
        if getattr(args, "compilation_cache", False) and hosts.count() == 1:
            keep_programs()
        code = _run(work, args, console, needs_reader)
        ends_with(code)
        hosts.leave(code)
        return code


def _run(
    work: Callable[[argparse.Namespace, RunConsole], int | None],
    args: argparse.Namespace,
    console: RunConsole,
    needs_reader: bool,
) -> int:
    try:
        # Of many processes one may be asked to stop where the others are not.
        code, text = hosts.end(work(args, console) or 0)
        if text:
            console.note(text)
        return code
    except Stopped as error:
        code, text = hosts.end(error.exit_code, str(error))
        console.note(text)
        return code
    except TpmmError as error:
        code, text = hosts.end(error.exit_code, str(error))
        say = console.note if code == Stopped.exit_code else console.error
        say(text)
        return code
    except KeyboardInterrupt:
        code, text = hosts.end(Stopped.exit_code, "stopped")
        console.note(text)
        return code
    except BrokenPipeError:
        # Python flushes again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not needs_reader:
            return 0
        text = "standard output was closed; the same command continues"
        console.error(text)
        return hosts.end(TpmmError.exit_code, text)[0]
    except Exception as error:
        if hosts.count() == 1:
            raise
        traceback.print_exc()
        said, gone = f"{type(error).__name__}: {error}", hosts.is_collective(error)
        code, text = hosts.end(TpmmError.exit_code, said, collective=gone)
        console.error(text)
        return code
