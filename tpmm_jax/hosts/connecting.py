"""How the processes of a command find one another, before any device is used.

They first meet on the coordinator's port, by themselves: JAX would end a process whose
partners do not come with a stack trace that names none of them.
"""

import argparse
import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tpmm_jax.errors import BadInput, TpmmError
from tpmm_jax.hosts import meeting

# Seconds that processes wait for one another.
TIMEOUT = 300.0
# Environments in which one command is started many times: number of processes, rank.
_STARTED_MANY = (
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
)
_LINE = 65536
_HELLO = "tpmm_jax"


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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a command that many processes may run."""
    add = parser.add_argument_group(
        "many processes",
        "The same command on each; found by themselves on TPU pods and under SLURM, "
        "Open MPI and Kubernetes.",
    ).add_argument
    add("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    add(
        "--num-processes", type=int, metavar="N", help="how many; 1: look for no others"
    )
    add("--process-id", type=int, metavar="I", help="which this is, from 0")
    add(
        "--connect-timeout", type=float, default=TIMEOUT, metavar="SECONDS",
        help="wait so long for the others (default: %(default)g)",
    )  # fmt: skip


def join(args: argparse.Namespace) -> None:
    """Connects this process with the others, if it is one of many.

    Raises:
      BadInput: options, or processes, that do not fit together.
      OthersEnded: a process does not come in time; names it.
    """
    place = find_place(args)
    if place is None or place.count == 1:
        return
    meet(place, args.connect_timeout)
    import jax

    # Its handler of SIGTERM would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=60,
        heartbeat_timeout_seconds=meeting.HEARTBEAT,
    )
    from jax._src import distributed

    meeting.start(distributed.global_state.client, place.index, place.count)


def find_place(args: argparse.Namespace) -> Place | None:
    """Returns where this process stands; None: it is the only one."""
    given = {
        "--coordinator": args.coordinator,
        "--num-processes": args.num_processes,
        "--process-id": args.process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if args.num_processes == 1 and args.coordinator is None:
        return None
    if 0 < len(missing) < len(given):
        raise BadInput(
            f"{', '.join(x for x in given if x not in missing)} without "
            f"{', '.join(missing)}; give all three, or none where a cluster is found"
        )
    if not missing:
        index, count = args.process_id, args.num_processes
        if not 0 <= index < count:
            raise BadInput(
                f"--process-id {index} with --num-processes {count}: wanted 0 to "
                f"{count - 1}"
            )
        _parts(args.coordinator)
        return Place(args.coordinator, index, count)
    return _detected(args.connect_timeout)


def _detected(timeout: float) -> Place | None:
    """Returns the place that the cluster's own environment gives, as JAX reads it."""
    from jax._src import clusters

    kinds = [c for c in clusters.ClusterEnv._cluster_types if not c.opt_in_only_method]
    if "JOB_COMPLETION_INDEX" not in os.environ:
        # A pod that is no part of an indexed job stands alone.
        kinds = [c for c in kinds if c.__name__ != "K8sCluster"]
    try:
        if not any(c.is_env_present() for c in kinds):
            return None
        address, count, index, devices = (
            clusters.ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, int(timeout)
            )
        )
    except Exception as error:
        raise BadInput(
            f"a cluster's environment is here, but its processes cannot be found "
            f"({type(error).__name__}: {error}); give --coordinator, --num-processes "
            "and --process-id, or --num-processes 1 where there is no other"
        ) from error
    if address is None or count is None or index is None:
        return None
    return Place(address, index, count, devices)


def refuse_many(command: str) -> None:
    """Refuses a command that one process is to run where many were started.

    Raises:
      BadInput: names the variable that says so.
    """
    for count, rank in _STARTED_MANY:
        if rank in os.environ and int(os.environ.get(count) or 1) > 1:
            raise BadInput(
                f"{command} runs in one process, and {count} is {os.environ[count]}; "
                "start it once (srun --ntasks=1, say)"
            )


def _parts(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise BadInput(f"--coordinator {coordinator!r}: wanted HOST:PORT")
    return host.strip("[]"), int(port)


def meet(place: Place, timeout: float) -> None:
    """Waits until all processes are there; each then knows that the others are.

    Raises:
      BadInput: two have one number, or they expect other numbers; names them.
      OthersEnded: some are not there in time; names them.
    """
    until = time.monotonic() + timeout
    if place.index == 0:
        _receive(place, until, timeout)
    else:
        _call(place, until, timeout)


def _receive(place: Place, until: float, timeout: float) -> None:
    _, port = _parts(place.coordinator)
    try:
        both: dict[str, Any] = {}
        if socket.has_dualstack_ipv6():
            both = {"family": socket.AF_INET6, "dualstack_ipv6": True}
        listener = socket.create_server(("", port), backlog=place.count, **both)
    except OSError as error:
        raise BadInput(
            f"port {port} of --coordinator {place.coordinator} cannot be listened on "
            f"({error.strerror}); choose another"
        ) from None
    came: dict[int, tuple[socket.socket, str]] = {}
    waiting, known = list[socket.socket](), list[socket.socket]()
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)

        def refuse(text: str, code: int = BadInput.exit_code) -> None:
            _tell(known, text, code)
            raise _refusal(text, code)

        while len(came) < place.count - 1:
            if time.monotonic() >= until:
                missing = [i for i in range(1, place.count) if i not in came]
                refuse(
                    f"{place.count} processes were to come, and "
                    f"{', '.join(map(str, missing))} did not within {timeout:g} s; "
                    "start the same command on every host, with the same coordinator",
                    meeting.LOST,
                )
            ready, _, _ = select.select([listener, *waiting], [], [], 0.25)
            for one in ready:
                if one is listener:
                    waiting.append(stack.enter_context(listener.accept()[0]))
                    continue
                waiting.remove(one)
                if (said := _read(one)) is None:
                    continue  # a stranger
                known.append(one)
                index, count, host = said
                if count != place.count:
                    refuse(
                        f"process {index} on {host} expects {count} processes, "
                        f"process 0 expects {place.count}"
                    )
                if not 0 < index < count:
                    refuse(f"a process on {host} has the number {index}, of {count}")
                if index in came and not _is_gone(came[index][0]):
                    refuse(
                        f"two processes have the number {index}: on {host} and on "
                        f"{came[index][1]}"
                    )
                came[index] = one, host
        _tell(known, "")


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


def _read(one: socket.socket) -> tuple[int, int, str] | None:
    """Returns a process's number, how many it expects, and its host."""
    try:
        said = json.loads(one.recv(_LINE))
        if said["hello"] != _HELLO:
            return None
        return int(said["process"]), int(said["count"]), str(said["host"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _tell(processes: Sequence[socket.socket], refused: str, code: int = 0) -> None:
    said = json.dumps({"refused": refused, "code": code}).encode() + b"\n"
    for one in processes:
        with contextlib.suppress(OSError):
            one.sendall(said)


def _call(place: Place, until: float, timeout: float) -> None:
    said = {
        "hello": _HELLO,
        "process": place.index,
        "count": place.count,
        "host": socket.gethostname(),
    }
    while True:
        try:
            with socket.create_connection(_parts(place.coordinator), 5.0) as one:
                one.sendall(json.dumps(said).encode() + b"\n")
                one.settimeout(max(1.0, until - time.monotonic() + 5.0))
                found = json.loads(one.recv(_LINE))
        except (OSError, ValueError):
            if time.monotonic() >= until:
                text = (
                    f"process 0 did not answer at {place.coordinator} within "
                    f"{timeout:g} s; is it started, and can this host reach it?"
                )
                raise _refusal(text, meeting.LOST) from None
            time.sleep(0.25)
            continue
        if found["refused"]:
            raise _refusal(found["refused"], found["code"])
        return
