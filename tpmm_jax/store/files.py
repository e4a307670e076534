"""Files that are either whole or absent, and the lock of a run.

Every write goes to a temporary name, is flushed to the disk, and is renamed; the
folder is flushed after it. Lines are appended, and taken back if the disk fills up
half-way.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, TypeAlias

from tpmm_jax.errors import BadInput, CorruptCheckpoint, StorageError
from tpmm_jax.hosts import once

PathLike: TypeAlias = str | os.PathLike[str]

_ADVICE = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some of the quota and run the same command again",
    errno.EFBIG: "raise the file size limit (ulimit -f)",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose another folder or fix its owner",
    errno.EPERM: "permission denied; choose another folder or fix its owner",
}


@contextlib.contextmanager
def storage_errors(path: PathLike) -> Iterator[None]:
    """Turns an OSError into a StorageError that names `path` and what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        advice = _ADVICE.get(error.errno or 0, "check the disk and the path")
        raise StorageError(f"{path}: {reason}: {advice}") from error


def sync(path: PathLike) -> None:
    """Flushes a file, or a folder's entries so that a rename in it outlives power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Writes a whole file under a temporary name and renames it over `path`.

    Every file that is written whole goes through here; of several processes the first
    writes it.

    Raises:
      StorageError: the disk refuses; names `path`, and the old file is as it was.
    """
    path = pathlib.Path(path)
    once(lambda: _write_file(path, write), f"write {path}")


def _write_file(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> None:
    # A name of fixed length: the final name may already be as long as allowed.
    temporary = path.parent / f".writing-{os.getpid()}.tmp"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def canonical_json(obj: Any) -> str:
    """JSON with sorted keys and no spaces: equal objects give equal text.

    Raises:
      BadInput: the object holds something JSON cannot say, or NaN or infinity.
    """
    try:
        return json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"cannot be written as JSON: {error}; wanted dicts with string keys, "
            "lists, strings, finite numbers, booleans and None"
        ) from None


def sha256(obj: Any) -> str:
    """SHA-256 (hex) of an object's canonical JSON."""
    return hashlib.sha256(canonical_json(obj).encode()).hexdigest()


def write_text(path: PathLike, text: str) -> None:
    """Writes UTF-8 text; readers see the old file or the new one, never a part.

    Raises:
      StorageError: the disk refuses; names `path`.
    """
    write_file(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: PathLike, obj: Any) -> None:
    """Writes indented JSON with sorted keys; whole or not at all.

    Raises:
      BadInput: `obj` is not JSON (see `canonical_json`).
      StorageError: the disk refuses; names `path`.
    """
    data = encode_json(obj)
    write_file(path, lambda file: file.write(data))


def encode_json(obj: Any) -> bytes:
    """Indented JSON with sorted keys, UTF-8.

    Raises:
      BadInput: `obj` is not JSON (see `canonical_json`).
    """
    canonical_json(obj)
    text = json.dumps(obj, sort_keys=True, indent=2, ensure_ascii=False)
    return (text + "\n").encode("utf-8")


def read_json(path: PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      CorruptCheckpoint: the file is not JSON; names `path`.
      StorageError: the file cannot be read; names `path`.
    """
    with storage_errors(path):
        data = pathlib.Path(path).read_bytes()
    return parse_json(data, path)


def parse_json(data: bytes, path: PathLike) -> Any:
    """What a JSON file holds; raises CorruptCheckpoint, naming `path`, if nothing."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(
            f"{path}: not JSON ({error}); restore the file from a copy"
        ) from None


def append_lines(path: PathLike, lines: Sequence[str], *, flush: bool = True) -> None:
    """Appends lines; a torn line left by a kill is dropped first.

    They are written at once, but a kill may leave only the first of them. Every line
    that is appended to a file goes through here.

    Args:
      flush: wait for the disk; otherwise only the operating system has the lines.

    Raises:
      BadInput: a line holds a line break.
      StorageError: the disk refuses; names `path`, and the file is as it was.
    """
    for line in lines:
        if "\n" in line or "\r" in line:
            raise BadInput(f"{path}: a line to append has a line break: {line[:80]!r}")
    path = pathlib.Path(path)
    once(lambda: _append_lines(path, lines, flush), f"append to {path}")


def _append_lines(path: pathlib.Path, lines: Sequence[str], flush: bool) -> None:
    data = "".join(line + "\n" for line in lines).encode("utf-8")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        if not is_new and _is_torn(path):
            read_lines_repaired(path)
        with open(path, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                while data:
                    data = data[file.write(data) :]
                if flush:
                    os.fsync(file.fileno())
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(file.fileno(), size)
                raise
        if is_new and flush:
            sync(path.parent)


def _is_torn(path: pathlib.Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def read_lines_repaired(path: PathLike, *, truncate: bool = True) -> list[str]:
    """The whole lines of a file that `append_lines` writes.

    Args:
      path: the file; a missing one has no lines.
      truncate: cut a torn last line (one without a line break) off the file too.

    Returns:
      The lines without their line breaks.

    Raises:
      CorruptCheckpoint: a line is not UTF-8; names the file and the line.
      StorageError: the file cannot be read or cut.
    """
    path = pathlib.Path(path)
    with storage_errors(path):
        if not path.exists():
            return []
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if truncate and whole < len(data):
            once(lambda: _cut(path, whole), f"cut {path}")
    lines = []
    for number, raw in enumerate(data[:whole].split(b"\n")[:-1], start=1):
        try:
            lines.append(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise CorruptCheckpoint(
                f"{path}: line {number} is not UTF-8 ({error.reason}); restore the "
                "file from a copy"
            ) from None
    return lines


def _cut(path: pathlib.Path, size: int) -> None:
    with open(path, "rb+") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def remove_tree(path: pathlib.Path) -> None:
    """Removes a folder if it is there."""
    once(lambda: _remove_tree(path), f"remove {path}")


def _remove_tree(path: pathlib.Path) -> None:
    with storage_errors(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


class RunLock:
    """Lets one command at a time write to a run's folder.

    The kernel holds the lock, on an open file, so that it goes with the process
    however the process ends. The file's content only serves the message.

    Raises:
      BadInput: another live process holds it; names its host, pid and start.
      StorageError: the folder cannot be written, or does not support file locks.
    """

    FILE = "run.lock"

    def __init__(self, workdir: PathLike):
        self.path = pathlib.Path(workdir) / self.FILE
        self._descriptor: int | None = None

    def __enter__(self) -> "RunLock":
        once(self._take, f"lock {self.path}")
        return self

    def _take(self) -> None:
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        # A forked child must not keep it open, or the lock of a killed run would live
        # on in its data workers.
        os.register_at_fork(after_in_child=self.release)

    def _lock(self, descriptor: int) -> None:
        with storage_errors(self.path):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput(self._holder(descriptor)) from None
            owner = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            }
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
            os.fsync(descriptor)

    def owner(self) -> str:
        """Returns what the file says of who holds it; "" where it is not there."""
        with contextlib.suppress(OSError):
            return self.path.read_text(encoding="utf-8")
        return ""

    def _holder(self, descriptor: int) -> str:
        try:
            owner = json.loads(os.pread(descriptor, 4096, 0))
            who = (
                f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
            )
        except (ValueError, KeyError, TypeError):
            who = "another process (it has not written its name yet)"
        return (
            f"{self.path.parent} is in use by {who}; wait for it, stop it, or choose "
            "another folder"
        )

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def release(self) -> None:
        """Gives the lock back; the file stays, for removing it would race."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
