"""How the processes of a command find one another, before any device is used.

They first meet by themselves (``gathering``), and then by JAX.
"""

import argparse
import os

from tpmm_jax.errors import BadInput
from tpmm_jax.hosts import meeting
from tpmm_jax.hosts.gathering import Place, meet, parts
from tpmm_jax.stopping import asked, boundaries

# Seconds that processes wait for one another.
TIMEOUT = 300.0
# Environments in which one command is started many times: number of processes, rank.
_STARTED_MANY = (
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
)
_TELL = (
    "give --coordinator, --num-processes and --process-id, or --num-processes 1 where "
    "there is no other"
)


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
      OthersEnded: a process does not come in time, or is gone; names it.
    """
    place = find_place(args)
    if place is None or place.count == 1:
        return
    meet(place, args.connect_timeout)
    failed = None
    # A stop waits until the others can be told of it.
    with boundaries():
        try:
            _start(place)
        except Exception as error:
            failed = error
    if asked():
        raise KeyboardInterrupt
    if failed is not None:
        # Another start may find them: one was gone when JAX looked for it.
        raise meeting.OthersEnded(
            f"JAX could not connect the processes ({failed})", meeting.LOST
        ) from failed


def _start(place: Place) -> None:
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
        parts(args.coordinator)
        return Place(args.coordinator, index, count)
    return _detected(args.connect_timeout)


def _detected(timeout: float) -> Place | None:
    """Returns the place that the cluster's own environment gives, as JAX reads it."""
    from jax._src import clusters

    kinds = [c for c in clusters.ClusterEnv._cluster_types if not c.opt_in_only_method]
    if "JOB_COMPLETION_INDEX" not in os.environ:
        # A pod that is no part of an indexed job stands alone.
        kinds = [c for c in kinds if c.__name__ != "K8sCluster"]
    address = count = index = devices = None
    try:
        if any(c.is_env_present() for c in kinds):
            address, count, index, devices = (
                clusters.ClusterEnv.auto_detect_unset_distributed_params(
                    None, None, None, None, None, int(timeout)
                )
            )
    except Exception as error:
        raise BadInput(
            f"a cluster's environment is here, but its processes cannot be found "
            f"({type(error).__name__}: {error}); {_TELL}"
        ) from error
    if address is None or count is None or index is None:
        if "JOB_COMPLETION_INDEX" in os.environ:
            raise BadInput(
                "JOB_COMPLETION_INDEX is set, so this is a pod of an indexed job, but "
                "JAX finds no other: it needs the kubernetes package (pip install "
                f'"jax[k8s]"); or {_TELL}'
            )
        return None
    return Place(address, index, count, devices)


def refuse_many(command: str) -> None:
    """Refuses a command that one process is to run where many were started.

    Raises:
      BadInput: names the variable that says so.
    """
    if why := _of_many():
        raise BadInput(f"{command} runs in one process, and {why}")


def _of_many() -> str | None:
    """Returns what says that this is one process of many, and what to do about it."""
    environment = os.environ
    for count, rank in _STARTED_MANY:
        if rank in environment and int(environment.get(count) or 1) > 1:
            given = environment[count]
            return f"{count} is {given}; start it once (srun --ntasks=1, say)"
    # The variables that JAX reads, in its order. On GCE only a server knows.
    tpu_hosts = "TPU_PROCESS_ADDRESSES"
    if tpu_hosts not in environment:
        tpu_hosts = "TPU_WORKER_HOSTNAMES"
    if environment.get("JAX_PLATFORMS") != "cpu":
        do = (
            "the TPU starts on all hosts or on none. Run it on a slice of one host, or "
            "on one host with JAX_PLATFORMS=cpu"
        )
        if (hosts := len(environment.get(tpu_hosts, "").split(","))) > 1:
            return f"{tpu_hosts} names {hosts}: {do}"
        slices = environment.get("MEGASCALE_NUM_SLICES", "1")
        if slices not in ("", "1"):
            return f"MEGASCALE_NUM_SLICES is {slices}: {do}"
    return None
