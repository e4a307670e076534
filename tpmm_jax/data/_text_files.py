"""Text files read strictly, plain or compressed: each defect with its line."""

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from tpmm_jax.data.problems import Place, Problems, at_line

MAX_ROW_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 1 << 30
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
COMPRESSED = (".gz", ".zst")


class _DamagedFile(Exception):
    """A compressed file that is cut off or damaged."""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, decompressed; raises _DamagedFile while they are read."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        try:
            with gzip.GzipFile(path, "rb") as file:
                yield file
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _DamagedFile(error) from error
    elif suffix == ".zst":
        # Parquet files need pyarrow already; Python has no Zstandard before 3.14.
        import pyarrow

        try:
            stream = pyarrow.input_stream(str(path), compression="zstd")
            with io.BufferedReader(stream) as file:
                yield file
        except OSError as error:
            # An error of the disk has a number, one of the content none.
            if error.errno is not None:
                raise
            raise _DamagedFile(error) from error
    else:
        with path.open("rb") as file:
            yield file


def too_long() -> str:
    """What is said of a row that is longer than one may be."""
    return f"longer than {MAX_ROW_BYTES // (1 << 20)} MiB"


def _raw_lines(
    path: Path, name: str, problems: Problems
) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers; one that is too long is noted and never held."""
    number = 0
    try:
        with _opened(path) as file:
            while raw := file.readline(MAX_ROW_BYTES + 2):
                number += 1
                if len(raw) <= MAX_ROW_BYTES or raw.endswith(b"\n"):
                    yield number, raw
                    continue
                problems.add(at_line(name, number), f"the line is {too_long()}")
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(MAX_ROW_BYTES)
    except _DamagedFile as error:
        problems.add(at_line(name, number + 1), _damaged(error), fatal=True)


def _damaged(error: BaseException) -> str:
    return f"the compressed file is cut off or damaged ({error})"


def text_lines(
    path: Path, name: str, problems: Problems
) -> Iterator[tuple[Place, str]]:
    """(origin, text) of each line that can be read.

    Blank lines are counted, but for those at the end of the file. A byte order mark
    begins a file, or the part of one that was put together from several.
    """
    blank = 0
    for number, raw in _raw_lines(path, name, problems):
        origin = at_line(name, number)
        if number == 1 and raw.startswith(_UTF16):
            problems.add(origin, "the file is UTF-16; save it as UTF-8", fatal=True)
            return
        raw = raw.removeprefix(codecs.BOM_UTF8)
        if not raw.strip():
            blank += 1
            continue
        problems.counts["blank_lines"] += blank
        blank = 0
        if b"\0" in raw:
            problems.add(origin, f"holds a NUL byte at column {raw.index(0) + 1}")
            continue
        try:
            yield origin, raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            problems.add(origin, _not_utf8(raw, error))


def _not_utf8(raw: bytes, error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{raw[error.start]:02x} at byte {error.start + 1}"


def read_document(path: Path, name: str, problems: Problems) -> str | None:
    """The whole text of a file; None where a fault was noted."""
    try:
        with _opened(path) as file:
            raw = file.read(MAX_DOCUMENT_BYTES + 1).removeprefix(codecs.BOM_UTF8)
    except _DamagedFile as error:
        problems.add(name, _damaged(error), fatal=True)
        return None
    fault, at = _document_fault(raw)
    if not fault:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            fault, at = _not_utf8(raw, error), error.start
    place = name if at is None else at_line(name, raw.count(b"\n", 0, at) + 1)
    problems.add(place, fault, fatal=True)
    return None


def _document_fault(raw: bytes) -> tuple[str, int | None]:
    """What is wrong with a document's bytes, and at which of them; "" if nothing."""
    if len(raw) > MAX_DOCUMENT_BYTES:
        size = MAX_DOCUMENT_BYTES >> 20
        return f"larger than {size} MiB; convert it to JSON Lines", None
    if raw.startswith(_UTF16):
        return "the file is UTF-16; save it as UTF-8", None
    if b"\0" in raw:
        return "holds a NUL byte", raw.index(0)
    return ("" if raw.strip() else "the file is empty"), None
