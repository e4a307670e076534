"""How processes meet on the coordinator's port, before JAX connects them.

JAX would end a process whose partners do not come with a stack trace that names none of
them.
"""

import contextlib
import json
import math
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tpmm_jax.errors import BadInput, Stopped, TpmmError
from tpmm_jax.hosts import meeting

# Seconds after which one that had come, and ended, counts as gone: a launcher may start
# it again at once.
_AGAIN = 15.0
# Seconds for which one that was stopped tells those who come a little later than it;
# the guard leaves it four.
_MOMENT = 2.0
_LINE = 65536
_HELLO = "tpmm_jax"
_NOT_AGAIN = "it did not come again within"


@dataclass(frozen=True)
class Place:
    """This process among those of the command.

    Attributes:
      coordinator: host:port of process 0.
      index, count: its number, and how many there are.
      devices: local devices that it may use; None: all.
    """

    coordinator: str
    index: int
    count: int
    devices: Any = None


def parts(coordinator: str) -> tuple[str, int]:
    """Returns the host and the port of HOST:PORT."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise BadInput(f"--coordinator {coordinator!r}: wanted HOST:PORT")
    return host.strip("[]"), int(port)


def meet(place: Place, timeout: float) -> None:
    """Waits until all processes are there; each then knows that the others are.

    Raises:
      BadInput: two have one number, or they expect other numbers; names them.
      OthersEnded: some are not there in time, or are gone or stopped; names them.
    """
    until = time.monotonic() + timeout
    if place.index == 0:
        _receive(place, until, timeout)
    else:
        _call(place, until, timeout)


def _receive(place: Place, until: float, timeout: float) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(place))
        came = _Came(place.count)
        try:
            while not came.all_there():
                came.look(until, timeout)
                ready, _, _ = select.select([listener, *came.waiting], [], [], 0.25)
                for one in ready:
                    if one is listener:
                        came.waiting.append(stack.enter_context(listener.accept()[0]))
                    else:
                        came.hear(one)
        except (KeyboardInterrupt, TpmmError) as error:
            text, code = _was_stopped(0, socket.gethostname()), Stopped.exit_code
            if isinstance(error, TpmmError):
                text, code = str(error), error.exit_code
            _tell([*came.known, *came.waiting], text, code)
            # Those who come a little later.
            last = time.monotonic() + _MOMENT
            while (left := last - time.monotonic()) > 0:
                if select.select([listener], [], [], left)[0]:
                    _tell([stack.enter_context(listener.accept()[0])], text, code)
            raise
        _tell(came.known, "")


def _listen(place: Place) -> socket.socket:
    _, port = parts(place.coordinator)
    both: dict[str, Any] = {}
    try:
        if socket.has_dualstack_ipv6():
            both = {"family": socket.AF_INET6, "dualstack_ipv6": True}
        return socket.create_server(("", port), backlog=place.count, **both)
    except OSError as error:
        raise BadInput(
            f"port {port} of --coordinator {place.coordinator} cannot be listened on "
            f"({error.strerror}); choose another"
        ) from None


class _Came:
    """Who came to process 0.

    Args:
      count: of processes, with process 0.

    Attributes:
      waiting: connections that have said nothing yet.
      known: those that said who they are; they wait for an answer.
    """

    def __init__(self, count: int):
        self.count = count
        self.waiting, self.known = list[socket.socket](), list[socket.socket]()
        self._by_number: dict[int, tuple[socket.socket, str]] = {}
        self._gone: dict[int, float] = {}

    def all_there(self) -> bool:
        """Whether all came, and are still there."""
        now, found = time.monotonic(), self._by_number.items()
        gone = [i for i, (one, _) in found if _is_gone(one)]
        self._gone = {i: self._gone.get(i, now) for i in gone}
        return len(self._by_number) == self.count - 1 and not gone

    def look(self, until: float, timeout: float) -> None:
        """Refuses all where one has been gone for too long, or did not come in time."""
        now = time.monotonic()
        missing = [i for i in range(1, self.count) if i not in self._by_number]
        if missing and now >= until:
            raise _refusal(
                f"{self.count} processes were to come, and "
                f"{', '.join(map(str, missing))} did not within {timeout:g} s; "
                "start the same command on every host, with the same coordinator",
                meeting.LOST,
            )
        for i, since in self._gone.items():
            if now >= min(until, since + _AGAIN):
                raise _refusal(
                    f"process {i} on {self._by_number[i][1]} came, and ended before "
                    f"all were there; {_NOT_AGAIN} {now - since:.0f} s",
                    meeting.LOST,
                )

    def hear(self, one: socket.socket) -> None:
        """Takes in what a process says of itself; refuses all where that cannot be."""
        self.waiting.remove(one)
        if (said := _read(one)) is None:
            one.close()  # a stranger; one of ours comes again
            return
        self.known.append(one)
        index, count, host, stopped = said
        if count != self.count:
            raise BadInput(
                f"process {index} on {host} expects {count} processes, "
                f"process 0 expects {self.count}"
            )
        if not 0 < index < count:
            raise BadInput(f"a process on {host} has the number {index}, of {count}")
        if stopped:
            raise _refusal(_was_stopped(index, host), Stopped.exit_code)
        before = self._by_number.get(index)
        if before is not None and not _is_gone(before[0]):
            raise BadInput(
                f"two processes have the number {index}: on {host} and on {before[1]}"
            )
        self._by_number[index] = one, host
        with contextlib.suppress(OSError):
            _send(one, {"known": index})


def _was_stopped(index: int, host: str) -> str:
    return (
        f"process {index} on {host} was stopped while it waited for the others; "
        "run the same command again"
    )


def _is_gone(one: socket.socket) -> bool:
    """Whether a process that came has died since, as one that was started again."""
    try:
        return one.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _refusal(text: str, code: int) -> TpmmError:
    """Returns bad input; or what another start may find otherwise."""
    if code == BadInput.exit_code:
        return BadInput(text)
    return meeting.OthersEnded(text, code)


def _read(one: socket.socket) -> tuple[int, int, str, bool] | None:
    """Returns a process's number, how many it expects, its host, if it was stopped."""
    try:
        said = json.loads(one.recv(_LINE))
        if said["hello"] != _HELLO:
            return None
        numbers = int(said["process"]), int(said["count"])
        return *numbers, str(said["host"]), bool(said["stopped"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _tell(processes: Sequence[socket.socket], refused: str, code: int = 0) -> None:
    for one in processes:
        with contextlib.suppress(OSError):
            _send(one, {"refused": refused, "code": code})


def _send(one: socket.socket, said: dict[str, Any]) -> None:
    one.sendall(json.dumps(said).encode() + b"\n")


def _call(place: Place, until: float, timeout: float) -> None:
    said = {
        "hello": _HELLO,
        "process": place.index,
        "count": place.count,
        "host": socket.gethostname(),
        "stopped": False,
    }
    try:
        found = _answer(place, said, until, timeout)
    except KeyboardInterrupt:
        last = time.monotonic() + _MOMENT
        while time.monotonic() < last:
            with contextlib.suppress(OSError), _connected(place, 1.0) as one:
                _send(one, said | {"stopped": True})
                break
            time.sleep(0.25)
        raise
    if found["refused"]:
        raise _refusal(found["refused"], found["code"])


def _answer(
    place: Place, said: dict[str, Any], until: float, timeout: float
) -> dict[str, Any]:
    """Returns what process 0 says once all are there, or one is refused."""
    known, gone = False, math.inf
    while True:
        try:
            with _connected(place, 5.0) as one, one.makefile() as lines:
                _send(one, said)
                # Process 0 may have begun to wait after this one.
                one.settimeout(timeout + 5.0)
                for line in lines:
                    found = json.loads(line)
                    if "refused" in found:
                        return found
                    known, gone = True, math.inf
        except (OSError, ValueError, TypeError):
            pass
        now = time.monotonic()
        if known:
            gone = min(gone, now)
        if now >= (gone + _AGAIN if known else until):
            text = (
                f"process 0 did not answer at {place.coordinator} within "
                f"{timeout:g} s; is it started, and can this host reach it?"
            )
            if known:
                text = (
                    f"process 0 at {place.coordinator} ended before all were there; "
                    f"{_NOT_AGAIN} {now - gone:.0f} s"
                )
            raise _refusal(text, meeting.LOST) from None
        time.sleep(0.25)


def _connected(place: Place, timeout: float) -> socket.socket:
    return socket.create_connection(parts(place.coordinator), timeout)
