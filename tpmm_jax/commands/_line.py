"""A command line's arguments and its end: nearest options, exit codes."""

import argparse
import contextlib
import difflib
import io
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from tpmm_jax import hosts
from tpmm_jax.errors import BadInput, Stopped, TpmmError
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.escapes import printable
from tpmm_jax.sampling import SamplingConfig
from tpmm_jax.stopping import ends_with, keyboard_as_before, watched
from tpmm_jax.stopping.guard import GUARD


class Parser(argparse.ArgumentParser):
    """argparse with examples kept as written, and nearest names for a typo."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            # An abbreviation would change its meaning with the next option added.
            allow_abbrev=False,
            **kwargs,
        )

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong and how to see what is right; exits with 2."""
        known = [name for a in self._actions for name in a.option_strings]
        hints = []
        if message.startswith("unrecognized arguments"):
            for word in message.split(":", 1)[1].split():
                name = word.partition("=")[0]
                near = [k for k in known if k.startswith(name)]
                near = near or difflib.get_close_matches(name, known, n=1)
                if name.startswith("-") and near:
                    hints.append(f"did you mean {near[0]}?")
        text = "; ".join([f"error: {message}", *hints])
        text = f"{printable(text)}\nhow to use it: {self.prog} --help"
        print(text, file=sys.stderr)
        raise SystemExit(BadInput.exit_code)


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds --set, as ``config.load_config`` takes its overrides."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="overrides",
        help=text,
    )


def add_base(parser: argparse.ArgumentParser) -> None:
    """Adds --base to a command whose MODEL may be a PEFT directory."""
    text = "the model under a PEFT adapter (default: the one that the adapter names)"
    parser.add_argument("--base", metavar="BASE", help=text)


def add_timeout(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds --timeout to a command that calls a user's functions."""
    text = f"that one call of a function may take, or none (default: {default})"
    parser.add_argument("--timeout", metavar="SECONDS", help=f"seconds {text}")


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


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how prompts are answered, and how often."""
    add = parser.add_argument
    add_drawing(parser)
    add("--num-samples", type=int, default=1, help="answers per prompt (default: 1)")
    add("--batch-size", type=int, default=32, help="prompts per batch (default: 32)")


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how one answer is drawn."""
    add = parser.add_argument
    add("--temperature", type=float, default=1.0, help="0 is greedy (default: 1)")
    add(
        "--top-p",
        type=float,
        default=1.0,
        help="keep the most likely tokens of this total probability (default: 1, all)",
    )
    add(
        "--top-k",
        type=int,
        default=0,
        help="keep this many of the most likely tokens (default: 0, all)",
    )
    add("--seed", type=int, default=0, help="default: 0")


def sampling_of(args: argparse.Namespace, max_new_tokens: int) -> SamplingConfig:
    """Returns what the options of ``add_sampling`` say of the draws, not checked."""
    return SamplingConfig(
        max_new_tokens=max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
    )


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
            faults.append(f"--{name.replace('_', '-')} is {value}; use {wanted}")
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
            if many:
                hosts.join(args)
            else:
                hosts.refuse_many("this command")
        except TpmmError as error:
            console.error(str(error))
            return error.exit_code
        except KeyboardInterrupt:
            console.note("stopped")
            return Stopped.exit_code
        if hosts.index() > 0:
            # Process 0 speaks for all.
            console = RunConsole(io.StringIO(), io.StringIO())
            GUARD.say = console.note
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
