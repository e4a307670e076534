"""The defects of one source, gathered so that a user sees all of them at once."""

import logging

from tpmm_jax.errors import BadInput

SHOWN = 20

_log = logging.getLogger(__name__)


class Problems:
    """A list of (origin, what is wrong) that turns into one error at the end.

    Args:
      source: what was read, for the headline.
      allowed_rows: number of bad rows that may be left out instead of refused.
    """

    def __init__(self, source: str, *, allowed_rows: int = 0) -> None:
        if allowed_rows < 0:
            raise BadInput(
                f"allowed bad rows: got {allowed_rows}, wanted a count of 0 or more"
            )
        self._source = source
        self._allowed_rows = allowed_rows
        self._found: list[tuple[str, str]] = []
        self._fatal = False

    def add(self, origin: str, text: str, *, fatal: bool = False) -> None:
        """Note one defect; a fatal one (a file cut off) can never be skipped."""
        self._found.append((origin, text))
        self._fatal |= fatal

    def origins(self) -> set[str]:
        """The rows that have at least one defect."""
        return {origin for origin, _ in self._found}

    def settle(self) -> int:
        """Refuse the source, or say which rows are left out.

        Returns:
          The number of rows left out (0 where there is no defect).

        Raises:
          BadInput: more rows are bad than were allowed, or one defect is fatal.
        """
        if not self._found:
            return 0
        rows = len(self.origins())
        if self._fatal or rows > self._allowed_rows:
            raise BadInput(self._message(rows))
        _log.warning("%s: %d bad rows left out\n%s", self._source, rows, self._lines())
        return rows

    def _lines(self) -> str:
        shown = [f"  {origin}: {text}" for origin, text in self._found[:SHOWN]]
        if len(self._found) > SHOWN:
            shown.append(f"  and {len(self._found) - SHOWN} more")
        return "\n".join(shown)

    def _message(self, rows: int) -> str:
        limit = (
            f" (at most {self._allowed_rows} may be skipped)"
            if self._allowed_rows
            else ""
        )
        return (
            f"{self._source}: {_count(len(self._found), 'problem')} in "
            f"{_count(rows, 'row')}{limit}; nothing was used.\n{self._lines()}\n"
            "Correct or remove what is listed and run the same command again."
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
