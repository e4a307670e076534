"""The devices that a plan is for: those at hand, a TPU slice, or a GPU node."""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from tpmm_jax.chips import CHIPS, GPUS, TPUS, Chip, find_chip
from tpmm_jax.errors import BadInput

LOCAL = "local"
WANTED = (
    f"wanted {LOCAL} (the devices at hand), a TPU slice such as v5e:4x4 or v5p:2x2x2 "
    f"({', '.join(TPUS)}), or GPUs of one node such as h100:8 ({', '.join(GPUS)})"
)
# A host's TPUs; smaller slices have to say so.
HOST = 4


@dataclass(frozen=True)
class Target:
    """What a plan is for.

    Attributes:
      name: as it was asked for.
      devices: for a mesh; those of a TPU slice can be compiled for, not run.
      chip: what a device is; None: not known.
      compiles: whether the devices' own compiler is at hand.
      stands_for: the platform of devices that CPUs stand in for.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip | None
    compiles: bool
    stands_for: str | None = None

    @property
    def kind(self) -> str:
        """What a device is called."""
        return self.devices[0].device_kind if self.chip is None else self.chip.kind

    @property
    def memory(self) -> int | None:
        """Bytes that programs may use of one device; None: not known."""
        if self.name != LOCAL:
            return None if self.chip is None else self.chip.memory
        stats = self.devices[0].memory_stats() or {}
        if "bytes_limit" in stats:
            return int(stats["bytes_limit"])
        if self.devices[0].platform == "cpu":
            # The machine's, which its CPU devices share.
            pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            return pages // len(self.devices)
        return None if self.chip is None else self.chip.memory


def find_target(name: str, *, compiles: bool = True) -> Target:
    """Returns the devices of a name; to be called before JAX looks for devices.

    Args:
      compiles: False: their number and kind are enough.

    Raises:
      BadInput: not such a name, no such slice, or no TPU compiler.
    """
    if name == LOCAL:
        devices = jax.devices()
        return Target(name, devices, find_chip(devices[0].device_kind), True)
    kind, _, sizes = name.partition(":")
    if kind not in (*TPUS, *GPUS):
        raise BadInput(f"--topology {name}: {WANTED}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes):
        raise BadInput(f"--topology {name}: {WANTED}")
    shape = [int(size) for size in sizes.split("x")]
    # What is planned here has no use for the devices at hand, and must not take them.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")
    if kind in GPUS and len(shape) > 1:
        raise BadInput(f"--topology {name}: of GPUs their number alone, such as h100:8")
    if kind in GPUS or not compiles:
        platform = "gpu" if kind in GPUS else "tpu"
        many = _stand_ins(name, math.prod(shape))
        return Target(name, many, CHIPS[kind], False, platform)
    return Target(name, _slice(name, shape), CHIPS[kind], True)


def _stand_ins(name: str, count: int) -> Sequence[Any]:
    """Returns as many CPU devices: shapes and shardings are those of any device."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise BadInput(
            f"--topology {name}: {count} devices are to stand in, and JAX was asked "
            f"for its {len(devices)} before; does the config file ask for devices?"
        )
    return devices[:count]


def _slice(name: str, shape: Sequence[int]) -> Sequence[Any]:
    """Returns the devices of a TPU slice, which nothing runs on."""
    if importlib.util.find_spec("libtpu") is None:
        raise BadInput(
            f"--topology {name} needs the TPU compiler, which runs on any x86-64 "
            "Linux: pip install 'tpmm_jax[tpu]'"
        )
    # It asks Google's metadata server who it is, and locks itself, unless it is told.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(variable, value)
    more: dict[str, Any] = {}
    if math.prod(shape) < HOST:
        more["chips_per_host_bounds"] = [*shape, *[1] * (3 - len(shape))]
    try:
        found = topologies.get_topology_desc(name, platform="tpu", **more)
    except Exception as error:
        said = str(error).splitlines()[0]
        raise BadInput(
            f"--topology {name}: the TPU compiler knows no such slice ({said}); "
            "v5e:4x4, v5e:4x8, v5e:8x8, v6e:4x4, v5p:2x2x2 and v5p:4x4x4 are some"
        ) from None
    return found.devices
