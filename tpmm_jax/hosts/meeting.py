"""What processes say to one another, through the coordination service of JAX.

All processes make the same calls in the same order. A call has a number and a name, so
that processes that went different ways are told apart and do not wait for ever.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from tpmm_jax import errors
from tpmm_jax.errors import BadInput, Stopped, TpmmError
from tpmm_jax.stopping import asked
from tpmm_jax.stopping.guard import GUARD, within

T = TypeVar("T")
# As after SIGABRT, which ends a process whose coordinator is gone: to be started again.
LOST = 134
# Seconds after which a process whose heartbeats JAX does not hear counts as gone: JAX
# then ends all others, with a message and by SIGABRT. They need no interpreter, so that
# long C code, or a user's function, is no silence.
HEARTBEAT = 30
# Seconds that a process takes to follow one that ended; process 0, whose service the
# others use until then, leaves last.
_FOLLOW = 2.0
# Seconds between two looks at what the others say.
_LOOK = 0.25
# Boundaries whose answers are kept: nobody is that far behind.
_KEPT = 1000
# One message of the service has at most some megabytes.
_PIECE = 1_000_000


class OthersEnded(TpmmError):
    """Another process ended, and this one goes with it.

    Attributes:
      exit_code: that of the other.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


class Group:
    """The processes of a run, as one of them sees them.

    Args:
      client: of the coordination service.
      index: of this process.
      count: of processes.

    Attributes:
      alone: above 0 while only this process acts.
      ending: whether it says its last words.
    """

    def __init__(self, client: Any, index: int, count: int):
        self.client, self.index, self.count = client, index, count
        self.alone = 0
        self.ending = False
        self._calls = self._boundary = 0
        self._stopped: str | None = None
        self._ended: dict[str, Any] | None = None
        self._since = 0.0
        threading.Thread(target=self._watch, name="tpmm-hosts", daemon=True).start()

    # ---- calls

    def once(self, act: Callable[[], T], name: str) -> T:
        """See ``once``."""
        call, self._calls = self._calls, self._calls + 1
        if self.index > 0:
            self._set(f"come/{call}/{self.index}", name)
            found = json.loads(self._read(f"said/{call}"))
            if found["name"] != name:
                raise TpmmError(self._apart(0, found["name"], name))
            if "error" in found:
                raise _as_error(found["error"])
            return found["value"]
        for i in range(1, self.count):
            came = self._get(f"come/{call}/{i}")
            self._delete(f"come/{call}/{i}")
            if came != name:
                raise TpmmError(self._apart(i, came, name))
        # Whoever came has read what was said before.
        if call:
            self._delete(f"said/{call - 1}/")
        said: dict[str, Any] = {"name": name}
        self.alone += 1
        try:
            value = act()
            said["value"] = value
            return value
        except BaseException as error:
            said["error"] = _as_json(error)
            raise
        finally:
            self.alone -= 1
            # NumPy's numbers as Python's.
            text = json.dumps(said, default=lambda x: x.item())
            self._write(f"said/{call}", text)

    def _apart(self, other: int, theirs: str, ours: str) -> str:
        return (
            f"process {other} is at {theirs!r}, process {self.index} at {ours!r}: the "
            "processes of a run went different ways; their configs, data, libraries "
            "and environments have to be equal. If they are, please report this"
        )

    def same(self, what: Mapping[str, Any]) -> None:
        """See ``agree_same``."""
        call = self._calls
        mine = json.dumps(what, sort_keys=True, default=str)
        if self.index > 0:
            self._write(f"same/{call}/{self.index}", mine)

        def compare() -> None:
            ours = json.loads(mine)
            for i in range(1, self.count):
                theirs = json.loads(self._read(f"same/{call}/{i}"))
                self._delete(f"same/{call}/{i}/")
                names = sorted({*ours, *theirs})
                other = [k for k in names if ours.get(k) != theirs.get(k)]
                if other:
                    listed = "; ".join(
                        f"{k} is {theirs.get(k)!r} there, {ours.get(k)!r} here"
                        for k in other[:5]
                    )
                    raise BadInput(
                        f"process {i} differs from process 0: {listed}. All processes "
                        "of a run need the same code, config, data and folder"
                    )

        self.once(compare, "compare")

    def asked(self) -> str | None:
        """See ``asked_all``."""
        if self.alone:
            return asked()
        if self._stopped is not None:
            return self._stopped
        boundary, self._boundary = self._boundary, self._boundary + 1
        if self.index == 0:
            said = asked() or ""
            self._set(f"go/{boundary}", said)
            if boundary >= _KEPT:
                self._delete(f"go/{boundary - _KEPT}")
        else:
            said = self._get(f"go/{boundary}")
            if said:
                asked()  # the wish is known, and the end left to this process
        self._stopped = said or None
        return self._stopped

    # ---- the end

    def tell_end(self, code: int, message: str) -> None:
        """Says that this process ends, unless another one said so before."""
        mine = {"process": self.index, "code": code, "message": message}
        self._since = self._since or time.monotonic()
        # A service that hangs keeps whoever calls it.
        within(1.0, lambda: self._set("end/failed", json.dumps(mine)))

    def ended(self) -> dict[str, Any] | None:
        """Returns what was said of the end: process, code, message."""
        return self._ended

    def wait_for_others(self) -> None:
        """Waits until the others know of the end; process 0 holds the service."""
        within(1.0, lambda: self._set(f"end/gone/{self.index}", "", overwrite=True))

        def wait() -> None:
            while len(self.client.key_value_dir_get("tpmm/end/gone/")) < self.count:
                time.sleep(0.05)

        if self.index == 0:
            within(2 * _FOLLOW, wait)
            time.sleep(0.5)  # they flush, and go

    # ---- beside the work

    def _watch(self) -> None:
        posted = False
        while True:
            with contextlib.suppress(Exception):
                found = dict(self.client.key_value_dir_get("tpmm/end/"))
                if "tpmm/end/failed" in found and self._ended is None:
                    self._ended = json.loads(found["tpmm/end/failed"])
                    self._since = self._since or time.monotonic()
                if GUARD.request is not None and not posted:
                    self._set("end/stop", GUARD.request.name, overwrite=True)
                    posted = True
                elif (name := found.get("tpmm/end/stop")) and GUARD.request is None:
                    posted = True
                    GUARD.ask_for(name)
            time.sleep(_LOOK)

    def look(self, now: float) -> None:
        """Called by the guard's thread: ends what others' ends leave hanging."""
        if self._ended is None:
            return
        # Who says its last words, or closes what it had open, comes to its end itself.
        own = self.ending or self._ended["process"] == self.index
        if now - self._since > (4 * _FOLLOW if own else _FOLLOW):
            self._leave(self._ended["code"], self._said_of(self._ended))

    def leaving(self, code: int, reason: str) -> None:
        """Called by the guard before it ends this process."""
        self.tell_end(code, reason)
        self.wait_for_others()

    def _said_of(self, said: Mapping[str, Any]) -> str:
        """Returns what this process prints of another's end: process 0 alone does."""
        if self.index > 0 or self.ending or not said["message"]:
            return ""
        where = f"process {said['process']}: " if said["process"] else ""
        return f"error: {where}{said['message']}"

    def _leave(self, code: int, text: str) -> None:
        def say() -> None:
            if text:
                print(text, file=sys.stderr, flush=True)

        within(0.8, GUARD.hide, say, sys.stdout.flush)
        self.wait_for_others()
        os._exit(code)

    # ---- keys

    def _set(self, key: str, value: str, *, overwrite: bool = False) -> None:
        self.client.key_value_set(f"tpmm/{key}", value, allow_overwrite=overwrite)

    def _delete(self, key: str) -> None:
        with contextlib.suppress(Exception):
            self.client.key_value_delete(f"tpmm/{key}")

    def _get(self, key: str) -> str:
        """Returns what another process says under a key, whenever it comes to it."""
        while True:
            try:
                return self.client.blocking_key_value_get(f"tpmm/{key}", 500)
            except Exception as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise OthersEnded(
                        f"the coordinator is gone: {error}", LOST
                    ) from None
            if self._ended is not None:
                raise _ended_error(self._ended)

    def _write(self, key: str, text: str) -> None:
        pieces = [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]
        for number, piece in enumerate(pieces, start=1):
            self._set(f"{key}/{number}", piece)
        self._set(f"{key}/0", str(len(pieces)))

    def _read(self, key: str) -> str:
        pieces = int(self._get(f"{key}/0"))
        return "".join(self._get(f"{key}/{n}") for n in range(1, pieces + 1))


_group: Group | None = None


def start(client: Any, index: int, count: int) -> None:
    """Makes the processes known to one another."""
    global _group
    _group = Group(client, index, count)
    GUARD.beside = _group.look
    GUARD.leaving = _group.leaving


def count() -> int:
    """Returns the number of processes of this command."""
    return 1 if _group is None else _group.count


def index() -> int:
    """Returns the number of this process, from 0."""
    return 0 if _group is None else _group.index


def once(act: Callable[[], T], name: str = "") -> T:
    """Returns what process 0 gets of an action that it alone does.

    Before it acts every process has come here, so that what they found on the disk
    until now does not depend on what it does; behind it all find what it left.

    Args:
      act: returns what JSON can say. What it raises all processes raise.
      name: of the action, the same on all processes.
    """
    if _group is None or _group.alone:
        return act()
    return _group.once(act, name or getattr(act, "__qualname__", ""))


def acts_alone() -> bool:
    """Returns whether this process acts without the others."""
    return _group is not None and _group.alone > 0


def first_only(act: Callable[[], object]) -> None:
    """Has process 0 act; nobody waits for it, and nobody may rest on what it does."""
    if _group is None or _group.alone:
        act()
    elif _group.index == 0:
        _group.alone += 1
        try:
            act()
        finally:
            _group.alone -= 1


def agree_same(what: Mapping[str, Any]) -> None:
    """Refuses processes that differ.

    Args:
      what: name -> what has to be equal; JSON.

    Raises:
      BadInput: names the process and what differs.
    """
    if _group is not None and not _group.alone:
        _group.same(what)


def asked_all() -> str | None:
    """Returns the signal that asks all processes to stop here, if one came to any.

    A boundary: all processes come to it in the same order, and get the same answer.
    """
    return asked() if _group is None else _group.asked()


@contextlib.contextmanager
def shared_fate() -> Iterator[None]:
    """Tells the others at once of an error that leaves this block.

    What is closed on the way out may wait for them, and they for this process.
    """
    try:
        yield
    except BaseException as error:
        # What a computation of all raises may be another process's end; and a stop is
        # that of all, who save first.
        told = isinstance(error, Stopped) or is_collective(error)
        if _group is not None and not told:
            _group.tell_end(_code(error), str(error) or "stopped")
        raise


def is_collective(error: BaseException) -> bool:
    """Whether an error may only say that another process is gone."""
    import jax

    seen: BaseException | None = error
    while _group is not None and seen is not None:
        if isinstance(seen, jax.errors.JaxRuntimeError):
            return "RESOURCE_EXHAUSTED" not in str(seen)
        seen = seen.__cause__ or seen.__context__
    return False


def end(code: int, message: str = "", *, collective: bool = False) -> tuple[int, str]:
    """Returns the code with which all processes end, and what process 0 says of it.

    Args:
      code: of this process; 0 where its work is done.
      message: what went wrong.
      collective: whether it is an error of a computation of all processes, which may
        only say that another process is gone.
    """
    if _group is None or code == 0:
        return code, message
    if collective:
        code, message = _blame(code, message)
    _group.ending = True
    _group.tell_end(code, message)
    said = _group.ended()
    until = time.monotonic() + 2.0
    while said is None and time.monotonic() < until:
        time.sleep(0.05)
        said = _group.ended()
    if said is None or said["process"] == _group.index or said["message"] == message:
        return code, message
    where = f"process {said['process']}: " if said["message"] else ""
    return said["code"], where + said["message"]


def _blame(code: int, message: str) -> tuple[int, str]:
    """Waits until JAX has seen whether another process is gone, and ends this one."""
    assert _group is not None
    until = time.monotonic() + HEARTBEAT + 5
    while time.monotonic() < until:
        if (said := _group.ended()) is not None:
            return said["code"], said["message"]
        time.sleep(0.1)
    return code, message


def leave(code: int) -> None:
    """Ends this process of several: others may be gone, whom JAX would wait for."""
    if _group is not None and code != 0:
        within(0.8, GUARD.hide, sys.stdout.flush, sys.stderr.flush)
        _group.wait_for_others()
        os._exit(code)


def _code(error: BaseException) -> int:
    if isinstance(error, TpmmError):
        return error.exit_code
    return Stopped.exit_code if isinstance(error, KeyboardInterrupt) else 1


def _as_json(error: BaseException) -> dict[str, Any]:
    kind = type(error).__name__
    known = isinstance(error, TpmmError) and kind in vars(errors)
    text = str(error) if isinstance(error, TpmmError) else f"{kind}: {error}"
    return {"kind": kind if known else "", "text": text, "code": _code(error)}


def _as_error(found: Mapping[str, Any]) -> TpmmError:
    if found["kind"]:
        return getattr(errors, found["kind"])(found["text"])
    return OthersEnded(found["text"], found["code"])


def _ended_error(said: Mapping[str, Any]) -> TpmmError:
    return OthersEnded(f"process {said['process']}: {said['message']}", said["code"])
