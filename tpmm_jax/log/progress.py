"""The arithmetic of progress: how fast, how much longer, and how to say it."""

import collections

_WINDOW = 32


class Pace:
    """Speed over the latest items, blind to the first: it pays for compilation.

    Args:
        total: items of the whole phase.
        start: the clock's reading at the start, in seconds.
    """

    def __init__(self, total: int, start: float):
        self.total = total
        self.done = 0
        self._start = self._now = start
        self._marks: collections.deque[tuple[float, int]] = collections.deque(
            maxlen=_WINDOW
        )

    def advance(self, n: int, now: float) -> None:
        """Count n more items finished at now."""
        self.done += n
        self._now = now
        self._marks.append((now, self.done))

    def rate(self) -> float | None:
        """Items per second, or None while only the first item is known."""
        if len(self._marks) < 2:
            return None
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        if end <= start or after <= before:
            return None
        return (after - before) / (end - start)

    def elapsed(self, now: float) -> float:
        """Seconds since the start."""
        return now - self._start

    def remaining(self, now: float) -> float | None:
        """Seconds to the end, counting down between items; None while unknown."""
        if self.done >= self.total:
            return 0.0
        rate = self.rate()
        if rate is None:
            return None
        return max(0.0, (self.total - self.done) / rate - (now - self._now))


def clock_text(seconds: float | int) -> str:
    """Seconds as 0:07, 12:05 or 3:04:05."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def rate_text(rate: float | None, unit: str) -> str:
    """A rate as "12.3 steps/s", below one per second as "4.1 s each"; "" if unknown."""
    if rate is None:
        return ""
    if rate < 1:
        return f"{1 / rate:.1f} s each"
    # Three digits are as many as a rate deserves.
    return f"{rate:.1f} {unit}/s" if rate < 100 else f"{rate:,.0f} {unit}/s"
