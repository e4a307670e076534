"""What a run says to people, and how they stop it."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tpmm_jax.errors import Stopped
from tpmm_jax.hosts import asked_all
from tpmm_jax.log.console import RunConsole
from tpmm_jax.stopping import boundaries


class StopFlag:
    """SIGTERM and Ctrl-C as a stop at the next boundary; a second one acts at once."""

    def __init__(self) -> None:
        self._entered = contextlib.ExitStack()

    def __enter__(self) -> "StopFlag":
        self._entered.enter_context(boundaries())
        return self

    def __exit__(self, *_: Any) -> None:
        self._entered.close()

    @property
    def raised(self) -> str | None:
        """The signal that came; who reads it is at a boundary, and stops.

        Of several processes all read it, in the same order.
        """
        return asked_all()

    def check(self) -> None:
        """Raises Stopped if a signal came."""
        if (name := self.raised) is not None:
            raise Stopped(f"stopped by {name}")


@dataclass(frozen=True)
class Voice:
    """The console, and the flag that asks to stop.

    Attributes:
      told: what this start has warned of already.
    """

    console: RunConsole
    stop: StopFlag = field(default_factory=StopFlag)
    told: set[str] = field(default_factory=set)

    def is_new(self, what: str) -> bool:
        """Whether this start was not yet warned of it; from now on it was."""
        new = what not in self.told
        self.told.add(what)
        return new

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
