"""A user's function under way: since when, and for how much longer.

It runs in the main thread, where it may use asyncio, SIGALRM and whatever belongs to
the thread that imported it. The guard's thread watches the clock meanwhile.
"""

import signal
import threading
import time
from dataclasses import dataclass, field
from types import FrameType

# Seconds until a person is told, and at most between two lines.
FIRST_LINE, LONGEST_SILENCE = 8.0, 600.0

# By name the longest call that returned, in seconds.
_longest: dict[str, float] = {}


class TimedOut(BaseException):
    """Raised inside a user's function; ``except Exception`` does not catch it."""

    def __init__(self, wait: "Wait"):
        self.wait = wait


@dataclass(eq=False)
class Wait:
    """One call.

    Attributes:
      what: as messages give it.
      timeout: seconds; None: it may take for ever.
      on: what the function was called with, in words.
      option: the field or option that sets the timeout, in words.
      thread: that calls.
      interrupted: whether TimedOut was raised inside it.
      pressed: when the guard first tried to interrupt it.
      over: whether it returned.
    """

    what: str
    timeout: float | None
    on: str
    option: str = ""
    thread: int = field(default_factory=threading.get_ident)
    started: float = field(default_factory=time.monotonic)
    clock: str = field(default_factory=lambda: time.strftime("%H:%M:%S"))
    interrupted: bool = False
    pressed: float | None = None
    over: bool = False

    def __post_init__(self) -> None:
        # A function that is always slow is not announced at every call.
        usual = _longest.get(self.what, 0.0)
        self._next_line = max(FIRST_LINE, 2 * usual)

    def is_late(self, now: float) -> bool:
        """Whether the time-out passed."""
        if self.timeout is None or self.over:
            return False
        return now - self.started >= self.timeout

    def due_line(self, now: float) -> str | None:
        """Returns what a person should be told now, if anything."""
        seconds = now - self.started
        if seconds < self._next_line or self.over or self.is_late(now):
            return None
        self._next_line = seconds + min(seconds, LONGEST_SILENCE)
        end = "" if self.timeout is None else f", until {self.timeout:g} s at most"
        return f"waiting for {self.what} since {self.clock} ({seconds:.0f} s{end})"

    def too_late(self) -> str:
        """Returns what is said of a call that did not return in time."""
        return (
            f"{self.what} did not return within {self.timeout:g} s{self.on}. If it "
            f"needs longer, raise {self.option or 'its time-out'} (none: wait for ever)"
        )

    def finish(self) -> None:
        """Ends the wait; nothing interrupts it from here on."""
        self.over = True
        if self in under_way:
            under_way.remove(self)
        seconds = time.monotonic() - self.started
        _longest[self.what] = max(seconds, _longest.get(self.what, 0.0))


# The calls that have not returned, the innermost last.
under_way: list[Wait] = []


def interrupt_main() -> None:
    """Ends what the main thread is blocked in, so that it looks at the clock."""
    main = threading.main_thread().ident
    if main is not None and signal.getsignal(signal.SIGVTALRM) is _look:
        signal.pthread_kill(main, signal.SIGVTALRM)


def start_ticking() -> None:
    """Has the main thread look at the clock as the process spends its time.

    Some C code, such as that of regular expressions, keeps the interpreter to itself
    but does serve signals. The guard's thread would never run beside it.
    """
    # Never taken back: a signal that is still to come would end the process.
    if signal.getsignal(signal.SIGVTALRM) is not _look:
        signal.signal(signal.SIGVTALRM, _look)
    signal.setitimer(signal.ITIMER_VIRTUAL, 1.0, 1.0)


def stop_ticking() -> None:
    """Takes ``start_ticking`` back."""
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)


def _look(number: int, frame: FrameType | None) -> None:
    """Raises TimedOut where a call is late; else lets the guard's thread run."""
    now = time.monotonic()
    for wait in under_way:
        if wait.thread == threading.get_ident() and wait.is_late(now):
            wait.interrupted = True
            raise TimedOut(wait)
    time.sleep(0.005)
