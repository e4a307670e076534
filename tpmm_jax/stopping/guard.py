"""A thread beside the work: it says what is waited for, and ends what does not end.

Python serves a signal between two instructions of the main thread. An import, a
compilation or a library's C code may be one instruction for minutes. The guard reads
signals from the pipe that the operating system's handler writes to, so that it hears of
them at once.

A process that it ends loses nothing that was finished: files are whole or absent, as
after a kill.
"""

import contextlib
import enum
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tpmm_jax.errors import BadInput, Stopped
from tpmm_jax.stopping import waits

# Within 5 seconds of a signal the process is gone, the last words included.
GRACE = 4.0
# Steps and saves are left to end; this long they take only where a device hangs.
PATIENCE = 600.0
# Before anything is said: most work ends sooner.
_SOON = 0.2
# Some launchers send a signal twice, to a process and to its group.
_SAME_SIGNAL = 0.1
_STILL = 30.0


class Stage(enum.Enum):
    """Where a command is."""

    START = "imports"
    WORK = "no boundary comes"
    LOOP = "boundaries come, at which it can stop"


@dataclass
class Request:
    """Somebody wants the process to end.

    Attributes:
      name: of the signal.
      at: when it came.
      again: whether another came.
      said: when a person was last told.
      seen: whether the work knows, and ends by itself.
    """

    name: str
    at: float
    again: bool = False
    said: float | None = None
    seen: bool = False


def to_stderr(text: str) -> None:
    """Says it where no console is yet."""
    print(text, file=sys.stderr, flush=True)


class Guard:
    """The process's own; see the module.

    Attributes:
      stage: None where nobody asked for signals to be taken.
      handler: what Python calls on a signal of ours.
      say: tells a person.
      hide: takes bars off the terminal, for good.
      keeps: whether the loop of a run was entered, which keeps what it finishes.
      interrupted: whether a user's function was.
      code: what the process is about to end with, where it may hang at its end.
      beside: of several processes: called at every look, with the time.
      leaving: of several processes: called with the code and the reason of an end that
        the guard brings about.
      lock: of the pipe and of what is read from it.
    """

    def __init__(self) -> None:
        self.stage: Stage | None = None
        self.handler: Any = None
        self.say: Callable[[str], None] = to_stderr
        self.hide: Callable[[], None] = lambda: None
        self.request: Request | None = None
        self.keeps = self.interrupted = False
        self.code: int | None = None
        self.beside: Callable[[float], None] = lambda now: None
        self.leaving: Callable[[int, str], None] = lambda code, reason: None
        self.lock = threading.Lock()
        self.pipe: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None
        self._heard: dict[str, list[float]] = {}
        self._interrupts = self._leaving = 0.0

    def start(self) -> None:
        """Starts the thread, unless it runs."""
        if self._thread is not None and self._thread.is_alive():
            return
        if self.pipe is None:
            self.pipe = os.pipe()
            for end in self.pipe:
                os.set_blocking(end, False)
        self._thread = threading.Thread(
            target=self._run, args=self.pipe[:1], name="tpmm-guard", daemon=True
        )
        self._thread.start()

    def ask(self, number: int, by: str) -> bool:
        """Notes a signal; returns whether it is the first.

        Args:
          by: which way it was heard of. All signals come both ways, at any distance.
        """
        now, times = time.monotonic(), self._heard.setdefault(by, [])
        if times and now - times[-1] < _SAME_SIGNAL:
            return False
        times.append(now)
        if self.request is None:
            self.request = Request(signal.Signals(number).name, now)
        if len(times) > 1:
            self.request.again = True
        return len(times) == 1

    def ask_for(self, name: str) -> None:
        """Notes a signal that another process of the run was sent."""
        if self.request is None:
            self.request = Request(name, time.monotonic())

    def end_with(self, code: int) -> None:
        """Ends the process with that code if it should hang at its end."""
        self._leaving, self.code = time.monotonic(), code

    def forget(self) -> None:
        """Forgets signals that came."""
        with self.lock:
            self._drain()
            self.request = None
            self._heard = {}

    def _drain(self) -> bytes:
        with contextlib.suppress(OSError):
            if self.pipe is not None:
                return os.read(self.pipe[0], 512)
        return b""

    def _run(self, reading: int) -> None:
        while True:
            # Whatever goes wrong in here, the next look may go well.
            with contextlib.suppress(Exception):
                self._look(time.monotonic())
            select.select([reading], [], [], 0.25)
            with self.lock:
                for number in self._drain():
                    ours = signal.getsignal(number) is self.handler
                    if ours and self.handler is not None:
                        self.ask(number, by="pipe")

    def _look(self, now: float) -> None:
        for wait in list(waits.under_way):
            self._look_at_call(wait, now)
        if self.request is not None and self.stage is not None:
            self._look_at_request(self.request, now)
        if self.code is not None:
            self._look_at_end(self.code, now)
        self.beside(now)

    def _look_at_call(self, wait: waits.Wait, now: float) -> None:
        if (line := wait.due_line(now)) is not None:
            within(1.0, lambda: self.say(line))
        if not wait.is_late(now):
            return
        if now - self._interrupts >= 1.0:
            self._interrupts = now
            wait.pressed = wait.pressed or now
            waits.interrupt_main()
        held = wait.pressed is not None and now - wait.pressed >= GRACE
        # A process of another's, which called us, is not ours to end.
        if held and self.stage is not None and self.handler is not None:
            text = f"error: {wait.too_late()}. It cannot be interrupted"
            self.leaving(BadInput.exit_code, text)
            self._leave(BadInput.exit_code, lambda: to_stderr(text))

    def _look_at_request(self, request: Request, now: float) -> None:
        waited, reason = now - request.at, None
        if request.again:
            reason = f"{request.name} again"
        elif request.seen:
            if now - (request.said or request.at) >= _STILL:
                request.said = now
                text = f"{request.name}: still saving ({waited:.0f} s)"
                within(1.0, lambda: self.say(text))
        elif self.stage is Stage.START:
            reason = request.name
        else:
            busy = self._busy()
            if request.said is None and waited >= _SOON:
                request.said = now
                text = f"{request.name}: {self._plan(busy)}"
                within(1.0, lambda: self.say(text))
            short = busy is not None or self.stage is Stage.WORK
            if waited >= (GRACE if short else PATIENCE):
                reason = f"{request.name}: {busy or 'the work'} had not ended"
        if reason is not None:
            kept = "what was finished is kept: " * self.keeps
            text = f"ended by {reason}; {kept}run the same command again"
            self.leaving(Stopped.exit_code, text)
            self._leave(Stopped.exit_code, lambda: self.say(text))

    def _plan(self, busy: str | None) -> str:
        if busy is not None:
            ends = f"stopping as soon as {busy} ends, in 5 seconds at the latest"
        elif self.stage is Stage.WORK:
            ends = "stopping, in 5 seconds at the latest"
        else:
            ends = "stopping after the step or batch under way, and saving"
        return f"{ends}; a second signal ends the process at once"

    def _busy(self) -> str | None:
        """Returns what the main thread does that nobody knows the end of."""
        main = threading.main_thread().ident
        for wait in reversed(waits.under_way):
            if wait.thread == main:
                return wait.what
        if _runs("jax/_src/compiler.py"):
            return "the compilation"
        return None

    def _look_at_end(self, code: int, now: float) -> None:
        """Ends a process whose last lines wait for a thread that hangs."""
        if not _runs("threading.py", "_shutdown"):
            self._leaving = now
        elif now - self._leaving >= GRACE:
            self._leave(code, lambda: None)

    def _leave(self, code: int, say: Callable[[], None]) -> None:
        within(0.8, self.hide, say, sys.stdout.flush, sys.stderr.flush)
        os._exit(code)

    def forked(self) -> None:
        """Lets a child process be: its signals are its own."""
        if self.pipe is not None:
            for end in self.pipe:
                os.close(end)
        waits.under_way.clear()
        self.__init__()  # type: ignore[misc]


def _runs(file: str, function: str | None = None) -> bool:
    """Whether the main thread is inside a file, or one of its functions."""
    main = threading.main_thread().ident
    frame = sys._current_frames().get(main or 0)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.endswith(file) and function in (None, code.co_name):
            return True
        frame = frame.f_back
    return False


def within(seconds: float, *works: Callable[[], Any]) -> None:
    """Calls each, and goes on where they hang: a pipe may be full, a lock be held."""

    def run() -> None:
        for work in works:
            with contextlib.suppress(Exception):
                work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)


GUARD = Guard()
