"""The defects of one source, gathered so that a user sees all of them at once."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from tpmm_jax.errors import BadInput

SHOWN = 20
OnBadRows: TypeAlias = Literal["refuse", "drop"]


class Place(str):
    """Where a row stood, as a person reads it; its parts go along as data.

    Attributes:
      file: the source as the user wrote it; of a pattern the file that it matched.
      line: on which the row begins; None in a table, and of a whole file.
      row: its number from 0 where rows are counted: in tables and .json documents.
    """

    file: str
    line: int | None
    row: int | None

    def __new__(
        cls,
        text: str,
        file: str | None = None,
        line: int | None = None,
        row: int | None = None,
    ) -> "Place":
        place = super().__new__(cls, text)
        place.file, place.line, place.row = file or text, line, row
        return place

    @property
    def number(self) -> int | None:
        """The line, or else the row; None of a whole file."""
        return self.row if self.line is None else self.line


def at_line(file: str, line: int) -> Place:
    """The place of a line, from 1."""
    return Place(f"{file}:{line}", file, line)


def place_of(origin: str) -> Place:
    """An origin with its parts; one that has none is a whole file's."""
    return origin if isinstance(origin, Place) else Place(origin)


class RowFault(ValueError):
    """What is wrong with one row; ``field`` is the column concerned, if it is one."""

    def __init__(self, text: str, field: str | None = None) -> None:
        super().__init__(text)
        self.field = field


class Defect(NamedTuple):
    """One defect: where the row stood, the column concerned, what is wrong.

    A fatal one (a file cut off) concerns the whole source and can never be left out.
    """

    origin: Place
    field: str | None
    reason: str
    fatal: bool = False


class Problems:
    """A list of defects that turns into one error, or one warning, at the end.

    Args:
      source: what was read, for the headline.
      on_bad_rows: whether ``settle`` refuses the source or leaves those rows out.

    Attributes:
      counts: of what was passed over while reading and is no defect (blank_lines).
      remarks: what is no defect, but should be looked at.
      margins: what is wrong with margins where nothing reads them.
    """

    def __init__(self, source: str, *, on_bad_rows: OnBadRows = "refuse") -> None:
        self.source = source
        self.found: list[Defect] = []
        self.counts = Counter[str]()
        self.remarks: list[Defect] = []
        self.margins: list[Defect] = []
        self._on_bad_rows = on_bad_rows

    def add(
        self,
        origin: str,
        text: str,
        *,
        field: str | None = None,
        fatal: bool = False,
    ) -> None:
        """Note one defect; see ``Defect``."""
        self.found.append(Defect(place_of(origin), field, text, fatal))

    def remark(self, origin: str, text: str) -> None:
        """Note what should be looked at in a row that is kept as it is."""
        self.remarks.append(Defect(place_of(origin), None, text))

    def origins(self) -> set[str]:
        """What has at least one defect: rows, and sources that are cut off."""
        return {defect.origin for defect in self.found}

    def bad_rows(self) -> set[str]:
        """The rows that have at least one defect."""
        return {defect.origin for defect in self.found if not defect.fatal}

    @property
    def refused(self) -> bool:
        """Whether ``settle`` refuses the source."""
        if self._on_bad_rows == "refuse":
            return bool(self.found)
        return any(defect.fatal for defect in self.found)

    def settle(self) -> int:
        """Refuse the source, or count the rows that are left out.

        Returns:
          The number of rows left out (0 where there is no defect).

        Raises:
          BadInput: rows are bad and are to be refused, or one defect is fatal.
        """
        if self.refused:
            raise BadInput(self._message())
        return len(self.bad_rows())

    def left_out(self) -> str:
        """The rows that are left out, as a warning."""
        rows = _count(len(self.origins()), "bad row")
        return f"{self.source}: {rows} left out\n{listing(self.found)}"

    def _message(self) -> str:
        advice = "Correct or remove what is listed and run the same command again"
        where, rows = "", len(self.bad_rows())
        if rows:
            where = f" in {_count(rows, 'row')}"
        if not any(defect.fatal for defect in self.found):
            advice += (
                ", or have bad rows dropped (data.on_bad_rows=drop in a config, "
                "--drop-bad-rows of a command that has it)"
            )
        return (
            f"{self.source}: {_count(len(self.found), 'problem')}{where}; nothing was "
            f"used.\n{listing(self.found)}\n{advice}."
        )


def in_order(defects: Sequence[Defect]) -> list[Defect]:
    """By line; files in the order of their first defect."""
    files: dict[str, int] = {}
    for defect in defects:
        files.setdefault(defect.origin.file, len(files))

    def key(defect: Defect) -> tuple[int, int, int]:
        place = defect.origin
        return files[place.file], place.line or 0, place.row or 0

    return sorted(defects, key=key)


def listing(defects: Sequence[Defect], limit: int = SHOWN) -> str:
    """One line per defect, in order; of many the first, and how many more there are."""
    some = in_order(defects)[:limit]
    shown = [f"  {defect.origin}: {defect.reason}" for defect in some]
    if len(defects) > limit:
        shown.append(f"  and {len(defects) - limit:,} more")
    return "\n".join(shown)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
