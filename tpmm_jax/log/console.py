"""What a person sees of a run: header, progress, warnings, the iteration table.

On a terminal a phase is a bar. In a log file it is plain lines: one when it is over,
one after its first second that it began, and between them some that are at least ten
seconds apart. Nothing here writes a control code. Neither does any text: what a file, a
tokenizer or a model says is shown with its control codes as escapes.
"""

import contextlib
import io
import os
import pathlib
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from tpmm_jax.log.escapes import printable
from tpmm_jax.log.progress import Pace, clock_text, rate_text
from tpmm_jax.log.table import iteration_table

# Tests that wait for a phase set it to 0.
_BEGIN_SECONDS = float(os.environ.get("TPMM_BEGIN_SECONDS", 1.0))
_LINE_SECONDS = 10.0
_LINE_SHARE = 0.1
_QUIET_SECONDS = 60.0
_NAME = 10
_GAP = 2
# In a line of next_steps.
_COMMAND = re.compile(r"(?<=  )(tpmm|tensorboard|python)(?= )")


class RunConsole:
    """The voice of a command line.

    Args:
        file: where everything but errors goes; standard output by default.
        errors: where error() goes; standard error by default.
        width: in characters; by default the terminal's, and 80 in a log file.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        file: io.TextIOBase | None = None,
        errors: io.TextIOBase | None = None,
        *,
        width: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._out = _console(file or sys.stdout, width)
        self._err = _console(errors or sys.stderr, width)
        self._clock = clock
        self._phases: list[Phase] = []
        self._live: Live | None = None

    @property
    def width(self) -> int:
        """Characters of a line."""
        return self._out.width

    def header(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Print what is about to run.

        Args:
            title: such as "iterative DPO, 4 iterations".
            rows: (name, value), such as ("model", "Gemma 2B, 2.51 B parameters").
        """
        grid = Table.grid(padding=(0, _GAP, 0, 0))
        grid.add_column(style="dim", no_wrap=True, min_width=_NAME)
        grid.add_column(overflow="fold")
        for name, value in rows:
            grid.add_row(Text(name), Text(value))
        _write(self._out, Text(title, style="bold"))
        _write(self._out, grid)
        self._out.print()

    @contextlib.contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator["Phase"]:
        """Show progress through work of known size; phases may lie in one another.

        Args:
            name: such as "sample".
            total: how many items there are.
            unit: plural, such as "prompts"; of one the singular is shown.
        """
        phase = Phase(name, total, unit, self._clock, self.note)
        live = self._out.is_interactive
        if live:
            self._show(phase)
        else:
            phase.start_lines()
        try:
            yield phase
        finally:
            if live:
                self._hide(phase)
            phase.end()

    def _show(self, phase: "Phase") -> None:
        self._phases.append(phase)
        if self._live is None:
            self._live = Live(
                console=self._out,
                get_renderable=self._bars,
                refresh_per_second=5,
                transient=True,
            )
            self._live.start()

    def _hide(self, phase: "Phase") -> None:
        self._phases.remove(phase)
        if not self._phases and self._live is not None:
            self._live.stop()
            self._live = None

    def _bars(self) -> Table:
        phases = list(self._phases)  # the bars are drawn in a thread of their own
        bars = [phase.bar() for phase in phases]
        width = 32 if self._out.width >= 120 else 16
        # Widths are set, since a table short of room would clip every cell of it.
        fixed = [max((len(bar[at]) for bar in bars), default=0) for at in range(3)]
        room = self._out.width - sum(fixed) - width - 4 * _GAP
        grid = Table.grid(padding=(0, _GAP, 0, 0))
        for cells in (fixed[0], width, *fixed[1:], max(1, room)):
            grid.add_column(no_wrap=True, width=cells)
        for phase, (name, count, left, *rest) in zip(phases, bars):
            words = Text(_fitting(rest, room), style="dim")
            grid.add_row(name, phase.drawn(width), count, left, words)
        return grid

    def note(self, text: str | Text) -> None:
        """Print a remark."""
        _print(self._out, text)

    def show(self, renderable: RenderableType) -> None:
        """Print a table, or lines that wrap."""
        _write(self._out, renderable)

    def warn(self, text: str) -> None:
        """Print a warning, in its place among the other lines."""
        self.note(Text.assemble(("warning: ", "bold yellow"), text))

    def error(self, message: str) -> None:
        """Print an error to standard error, without a traceback."""
        self.stop_bars()
        _print(self._err, Text.assemble(("error: ", "bold red"), message.strip()))

    def stop_bars(self) -> None:
        """Take the bars off the terminal, for good."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def iteration_table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print one row per iteration; see table.iteration_table for what is read."""
        self._out.print()
        _write(self._out, iteration_table(rows, self._out.width))
        self._out.print()

    def next_steps(self, lines: Sequence[str]) -> None:
        """Print what to do next, each line whole so that a command can be copied.

        A command stands at the beginning, or behind two spaces; it is written so that
        the shell finds that of this environment.
        """
        self._out.print()
        _write(self._out, Text("Next", style="bold"))
        for line in lines:
            found = _COMMAND.sub(lambda match: typed(match[0]), f"  {line}")
            _write(self._out, Text(found), soft_wrap=True)


def typed(name: str) -> str:
    """Returns what a person types to call a command of this environment."""
    folder = pathlib.Path(sys.executable).parent
    found = shutil.which(name)
    if not (folder / name).exists() or (found and pathlib.Path(found).parent == folder):
        return name
    path = os.path.relpath(folder / name)
    return str(folder / name) if path.startswith("..") else path


class Phase:
    """Progress of one phase; made by RunConsole.phase."""

    def __init__(
        self,
        name: str,
        total: int,
        unit: str,
        clock: Callable[[], float],
        say: Callable[[str], None],
    ):
        self._name, self._say, self._clock = name, say, clock
        self._units = unit
        self._unit = unit.removesuffix("s") if total == 1 else unit
        self._pace = Pace(total, clock())
        self._postfix: list[str] = []
        self._timer: threading.Timer | None = None
        self._begun, self._lock = False, threading.Lock()
        self._broken: BaseException | None = None
        self._said = (clock(), 0)

    def advance(self, n: int = 1, **postfix: str) -> None:
        """Count n more finished items.

        Args:
            n: how many.
            postfix: shown behind the bar, such as loss="0.61".
        """
        self._pace.advance(n, self._clock())
        if postfix:
            self._postfix = [f"{name} {value}" for name, value in postfix.items()]
        if self._timer is not None:
            self._maybe_say()

    def start_lines(self) -> None:
        """Report by lines, not by a bar; of a quick phase there is the last alone."""
        self._timer = threading.Timer(_BEGIN_SECONDS, self._in_time)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """Say how it went, in the line that stays."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._begun = True
            self._say(self.summary())
        if self._broken is not None:
            raise self._broken

    def _in_time(self) -> None:
        try:
            self._say_begun()
        # A pipe that nothing reads ends the run, in its own thread.
        except BaseException as error:
            self._broken = error

    def _say_begun(self) -> None:
        with self._lock:
            if not self._begun:
                self._begun = True
                self._say(f"{self._name:<{_NAME}}  {self._pace.total:,} {self._unit}")

    def _maybe_say(self) -> None:
        now, (then, before) = self._clock(), self._said
        waited, moved = now - then, self._pace.done - before
        far = moved >= _LINE_SHARE * self._pace.total or waited >= _QUIET_SECONDS
        if waited < _LINE_SECONDS or not far or self._pace.done >= self._pace.total:
            return
        self._said = (now, self._pace.done)
        self._say_begun()
        remaining = self._pace.remaining(now)
        left = "" if remaining is None else f"{clock_text(remaining)} left"
        self._say(self._joined(rate_text(self._pace.rate(), self._units), left))

    def bar(self) -> list[str]:
        """The words of the live line: name, count, time left, then what has room."""
        pace, now = self._pace, self._clock()
        remaining = pace.remaining(now)
        # Before the second item nothing is known of the speed: show that time passes.
        left = (
            f"{clock_text(pace.elapsed(now))} so far"
            if remaining is None
            else f"{clock_text(remaining)} left"
        )
        rate = rate_text(pace.rate(), self._units)
        return [f"{self._name:<{_NAME}}", self._count(), left, *self._postfix, rate]

    def drawn(self, width: int) -> ProgressBar:
        """The bar itself."""
        return ProgressBar(
            total=max(1, self._pace.total),
            completed=self._pace.done,
            width=width,
            complete_style="cyan",
            finished_style="cyan",
        )

    def summary(self) -> str:
        """The line that stays when the phase is over."""
        elapsed = self._pace.elapsed(self._clock())
        short = "" if self._pace.done >= self._pace.total else "stopped"
        rate = rate_text(self._pace.rate(), self._units)
        return self._joined(clock_text(elapsed), short, rate)

    def _count(self) -> str:
        return f"{self._pace.done:,}/{self._pace.total:,} {self._unit}"

    def _joined(self, *parts: str) -> str:
        words = [f"{self._name:<{_NAME}}", self._count(), *parts, *self._postfix]
        return "  ".join(word for word in words if word)


def _print(console: Console, text: str | Text) -> None:
    """Wrap at words on a terminal; keep a line of a log file whole, for grep."""
    text = Text(text) if isinstance(text, str) else text
    _write(console, text, soft_wrap=not console.is_terminal)


def _write(console: Console, what: RenderableType, *, soft_wrap: bool = False) -> None:
    """Print anything; what a file or a model says cannot steer the terminal.

    All that is printed, but for the bars, goes through here.
    """
    console.print(_Printable(what), soft_wrap=soft_wrap)


@dataclass(frozen=True)
class _Printable:
    """A renderable whose text is ``printable``; the console's own codes are styles."""

    what: RenderableType

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Segment]:
        for text, style, control in console.render(self.what, options):
            yield Segment(text if control else printable(text), style, control)


def _fitting(words: Sequence[str], room: int) -> str:
    """As many of the words, first to last, as fit."""
    line = ""
    for word in filter(None, words):
        longer = f"{line}{' ' * _GAP}{word}" if line else word
        if len(longer) > room:
            break
        line = longer
    return line


def _console(file: Any, width: int | None) -> Console:
    encoding = (getattr(file, "encoding", None) or "utf-8").lower().replace("-", "")
    if not encoding.startswith("utf") and hasattr(file, "reconfigure"):
        # A log in ASCII shows "?" for a letter it lacks; it must not end the run.
        file.reconfigure(errors="replace")
    terminal = file.isatty()
    # Said outright, so that FORCE_COLOR in a CI job puts no control codes in its log.
    return Console(
        file=file,
        width=width if width or terminal else 80,
        force_terminal=terminal,
        force_jupyter=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
