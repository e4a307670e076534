"""SIGTERM and Ctrl-C: taken from before a command's imports on, and given back."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from tpmm_jax.stopping.guard import GUARD, Stage, to_stderr

_before: dict[int, Any] = {}
# What ends within these seconds needs no word.
_MOMENT = 2.0


@contextlib.contextmanager
def watched(
    say: Callable[[str], None] | None = None, hide: Callable[[], None] | None = None
) -> Iterator[None]:
    """Ends the process by a signal with 75, in five seconds at the latest.

    Without ``say``, while a command is imported, it ends at once. Later a first
    signal is a KeyboardInterrupt, so that files are closed and removed; in
    ``boundaries`` it is a wish. A second one always ends the process at once.

    Args:
      say: tells a person.
      hide: takes bars off the terminal.
    """
    stage = Stage.START if say is None else Stage.WORK
    with _in_stage(stage, say or GUARD.say, hide or GUARD.hide):
        yield


@contextlib.contextmanager
def boundaries() -> Iterator[None]:
    """Leaves it to the work to ask whether it should end (``asked``).

    In a user's function and in a compilation, where it does not ask, it is given five
    seconds.
    """
    with _in_stage(Stage.LOOP, GUARD.say, GUARD.hide):
        GUARD.keeps = True
        yield


def asked() -> str | None:
    """Returns the signal that came; who asks is trusted to end soon."""
    if GUARD.request is None:
        return None
    GUARD.request.seen = True
    return GUARD.request.name


@contextlib.contextmanager
def keyboard_as_before() -> Iterator[None]:
    """Leaves Ctrl-C alone, for a command that gives it a meaning of its own."""
    if signal.SIGINT not in _before or not _in_main():
        yield
        return
    signal.signal(signal.SIGINT, _before[signal.SIGINT])
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _on_signal)


def ends_with(code: int) -> None:
    """Says what the process is about to end with.

    Python waits at its end for threads, of which a user's function may have left one
    that hangs: then the process is ended with that code.
    """
    if GUARD.interrupted or GUARD.request is not None:
        GUARD.end_with(code)


def ends_process() -> None:
    """Says that the process ends with the command: it is past being stopped again.

    Where nobody stopped it, a person is told of threads that it still waits for.
    """
    if GUARD.code is not None:
        _before.update(dict.fromkeys(_before, signal.SIG_IGN))
        return
    main, until = threading.main_thread(), time.monotonic() + _MOMENT
    left = [x for x in threading.enumerate() if x is not main and not x.daemon]
    for thread in left:
        thread.join(max(0.0, until - time.monotonic()))
    if names := [thread.name for thread in left if thread.is_alive()]:
        to_stderr(
            f"done, but the process waits for {', '.join(names)}: a function that was "
            "called started it, and did not end it; Ctrl-C ends the process"
        )


@contextlib.contextmanager
def signals_left_alone() -> Iterator[None]:
    """Takes no signal: a function that is called from Python leaves them to its caller.

    Ctrl-C is a KeyboardInterrupt there, and no boundary asks.
    """
    before = GUARD.stage, GUARD.handler
    if GUARD.stage is None:
        GUARD.stage, GUARD.handler = Stage.WORK, None
    try:
        yield
    finally:
        GUARD.stage, GUARD.handler = before


@contextlib.contextmanager
def _in_stage(
    stage: Stage, say: Callable[[str], None], hide: Callable[[], None]
) -> Iterator[None]:
    if not _in_main():
        # Python has signals served by the main thread alone.
        yield
        return
    earlier = GUARD.stage, GUARD.say, GUARD.hide
    wakeup = _take() if GUARD.stage is None else None
    GUARD.stage, GUARD.say, GUARD.hide = stage, say, hide
    try:
        yield
    finally:
        if GUARD.request is not None:
            GUARD.request.seen = True
        GUARD.stage, GUARD.say, GUARD.hide = earlier
        if wakeup is not None:
            _give_back(wakeup)


def _in_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _take() -> int:
    """Takes the signals; returns the file descriptor that they were written to."""
    GUARD.start()
    assert GUARD.pipe is not None
    GUARD.forget()
    GUARD.code, GUARD.handler = None, _on_signal
    GUARD.keeps = GUARD.interrupted = False
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        # A shell's background job ignores Ctrl-C, and should go on doing so.
        if before not in (signal.SIG_IGN, None):
            _before[number] = before
            signal.signal(number, _on_signal)
    return signal.set_wakeup_fd(GUARD.pipe[1], warn_on_full_buffer=False)


def _give_back(wakeup: int) -> None:
    signal.set_wakeup_fd(wakeup)
    while _before:
        signal.signal(*_before.popitem())
    GUARD.forget()


def _on_signal(number: int, frame: FrameType | None) -> None:
    first = GUARD.ask(number, by="handler")
    if first and GUARD.stage is Stage.WORK:
        raise KeyboardInterrupt


def _forked() -> None:
    """A child process, such as a worker of a user's function, is ended by a signal."""
    with contextlib.suppress(ValueError):
        if GUARD.stage is not None:
            signal.set_wakeup_fd(-1)
        while _before:
            signal.signal(*_before.popitem())
    GUARD.forked()


os.register_at_fork(after_in_child=_forked)
