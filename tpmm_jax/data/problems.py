"""The defects of one source, gathered so that a user sees all of them at once."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from tpmm_jax.errors import BadInput

SHOWN = 20
OnBadRows: TypeAlias = Literal["refuse", "drop"]

_PLACE = re.compile(r"(?P<file>.*?)(?::(?P<line>\d+)(?: row \d+)?| row (?P<row>\d+))")


class RowFault(ValueError):
    """What is wrong with one row; ``field`` is the column concerned, if it is one."""

    def __init__(self, text: str, field: str | None = None) -> None:
        super().__init__(text)
        self.field = field


class Defect(NamedTuple):
    """One defect: where the row stood, the column concerned, what is wrong."""

    origin: str
    field: str | None
    reason: str

    def place(self) -> tuple[str, int | None]:
        """(file, line); of a table the row's number from 0; of a whole file None."""
        match = _PLACE.fullmatch(self.origin)
        if match is None:
            return self.origin, None
        return match["file"], int(match["line"] or match["row"])


class Problems:
    """A list of defects that turns into one error, or one warning, at the end.

    Args:
      source: what was read, for the headline.
      on_bad_rows: whether ``settle`` refuses the source or leaves those rows out.
    """

    def __init__(self, source: str, *, on_bad_rows: OnBadRows = "refuse") -> None:
        self.source = source
        self.found: list[Defect] = []
        self._on_bad_rows = on_bad_rows
        self._fatal = False

    def add(
        self,
        origin: str,
        text: str,
        *,
        field: str | None = None,
        fatal: bool = False,
    ) -> None:
        """Note one defect; a fatal one (a file cut off) can never be left out."""
        self.found.append(Defect(origin, field, text))
        self._fatal |= fatal

    def origins(self) -> set[str]:
        """The rows that have at least one defect."""
        return {defect.origin for defect in self.found}

    def settle(self) -> int:
        """Refuse the source, or count the rows that are left out.

        Returns:
          The number of rows left out (0 where there is no defect).

        Raises:
          BadInput: rows are bad and are to be refused, or one defect is fatal.
        """
        rows = len(self.origins())
        if self._fatal or (rows and self._on_bad_rows == "refuse"):
            raise BadInput(self._message(rows))
        return rows

    def left_out(self) -> str:
        """The rows that are left out, as a warning."""
        rows = _count(len(self.origins()), "bad row")
        return f"{self.source}: {rows} left out\n{listing(self.found)}"

    def _message(self, rows: int) -> str:
        advice = "Correct or remove what is listed and run the same command again"
        if not self._fatal:
            advice += (
                ", or have bad rows dropped (data.on_bad_rows=drop in a config, "
                "--drop-bad-rows on a command line)"
            )
        return (
            f"{self.source}: {_count(len(self.found), 'problem')} in "
            f"{_count(rows, 'row')}; nothing was used.\n{listing(self.found)}\n"
            f"{advice}."
        )


def in_order(defects: Sequence[Defect]) -> list[Defect]:
    """By line; files in the order of their first defect."""
    files: dict[str, int] = {}
    for defect in defects:
        files.setdefault(defect.place()[0], len(files))
    places = [(files[file], line or 0) for file, line in (d.place() for d in defects)]
    return [defects[i] for i in sorted(range(len(defects)), key=places.__getitem__)]


def listing(defects: Sequence[Defect], limit: int = SHOWN) -> str:
    """A line a defect, in order; of many the first, and how many more there are."""
    some = in_order(defects)[:limit]
    shown = [f"  {defect.origin}: {defect.reason}" for defect in some]
    if len(defects) > limit:
        shown.append(f"  and {len(defects) - limit:,} more")
    return "\n".join(shown)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
