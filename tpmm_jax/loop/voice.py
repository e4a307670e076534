"""What a run says to people, and how they stop it."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from tpmm_jax.errors import Stopped
from tpmm_jax.log.console import RunConsole


class StopFlag:
    """Turns SIGTERM and Ctrl-C into a stop at the next safe place.

    A second signal acts at once.
    """

    def __init__(self) -> None:
        self.raised: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopFlag":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.raised = signal.Signals(number).name
        for n, handler in self._before.items():
            signal.signal(n, handler)

    def check(self) -> None:
        """Raises Stopped if a signal came."""
        if self.raised is not None:
            raise Stopped(f"stopped by {self.raised}")


@dataclass(frozen=True)
class Voice:
    """The console, and the flag that asks to stop."""

    console: RunConsole
    stop: StopFlag = field(default_factory=StopFlag)

    @contextlib.contextmanager
    def phase(
        self, title: str, total: int, unit: str, done: int = 0
    ) -> Iterator[Callable[..., None]]:
        """Shows progress; yields advance(count, **shown), which raises Stopped too."""
        with self.console.phase(title, total, unit) as bar:
            if done:
                bar.advance(done)

            def advance(count: int, **shown: str) -> None:
                bar.advance(count, **shown)
                self.stop.check()

            yield advance
