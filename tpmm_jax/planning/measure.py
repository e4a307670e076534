"""Compiles a phase's program for devices that may be elsewhere, and measures it.

Nothing is run. What was measured is kept, under a digest of the program, of the devices
and of the compiler: JAX's own cache of programs cannot be read for devices elsewhere.
"""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax

from tpmm_jax.errors import TpmmError
from tpmm_jax.mesh import bytes_on_device
from tpmm_jax.models.experts import standing_for
from tpmm_jax.planning import programs
from tpmm_jax.planning.devices import Target
from tpmm_jax.planning.phases import Phase
from tpmm_jax.planning.programs import Collective, Traffic, read_traffic
from tpmm_jax.steps.flops import program_flops

TOO_LARGE = re.compile(r"RESOURCE_EXHAUSTED|[Rr]an out of memory")
USED = re.compile(r"[Uu]sed ([\d.]+)([KMGT]?) of|required.*?\(([\d.]+)([KMGT])\)")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Measured:
    """A phase's program on one device, bytes.

    Attributes:
      flops: of a call, on all devices together.
      arguments: and what of the results does not take their place.
      temporary: None: not known, for nothing was compiled.
      refused: whether the compiler says that it does not fit.
    """

    flops: float
    arguments: int
    temporary: int | None
    traffic: Traffic | None
    refused: bool = False

    @property
    def total(self) -> int:
        return self.arguments + (self.temporary or 0)


def measure(
    phase: Phase, target: Target, devices: int, cache: pathlib.Path | None
) -> Measured:
    """Returns what a phase's program takes.

    Args:
      devices: of the mesh.
      cache: a folder; None: nothing is kept.

    Raises:
      TpmmError: the program does not compile.
    """
    # Mixtures of experts are computed otherwise on CPUs.
    with standing_for(target.stands_for):
        traced = phase.trace()
    flops = program_flops(traced.jaxpr.jaxpr, phase.turns)
    if not target.compiles:
        return Measured(flops, bytes_on_device((phase.args, phase.kwargs)), None, None)
    lowered = traced.lower()
    kept = None if cache is None else cache / f"{_key(lowered, phase, target)}.json"
    if kept is not None and (found := _read(kept)) is not None:
        return replace(found, flops=flops)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not TOO_LARGE.search(str(error)):
            said = str(error).splitlines()[0]
            raise TpmmError(f"{phase.name} does not compile: {said}") from error
        used = _used(str(error))
        found = Measured(
            flops, bytes_on_device((phase.args, phase.kwargs)), used, None, refused=True
        )
    else:
        found = _measured(flops, compiled, phase, devices)
    if kept is not None:
        _write(kept, found)
    return found


def _measured(flops: float, compiled: Any, phase: Phase, devices: int) -> Measured:
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Measured(
        flops,
        memory.argument_size_in_bytes + max(0, results),
        memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        read_traffic(compiled.as_text(), phase.turns, devices),
    )


def _used(text: str) -> int | None:
    """Returns the bytes that a compiler says a program would use."""
    match = USED.search(text)
    if match is None:
        return None
    number, unit = (match[1], match[2]) if match[1] else (match[3], match[4])
    return int(float(number) * UNITS[unit])


def _key(lowered: Any, phase: Phase, target: Target) -> str:
    versions = [
        importlib.metadata.version(name)
        for name in ("jax", "jaxlib", "libtpu")
        if _installed(name)
    ]
    kind = target.devices[0].device_kind
    # How a program is read counts as well.
    reader = hashlib.sha256(pathlib.Path(programs.__file__).read_bytes()).hexdigest()
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    given = [*versions, *flags, target.name, kind, str(phase.turns), reader]
    parts = [*given, lowered.as_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _read(path: pathlib.Path) -> Measured | None:
    try:
        kept = json.loads(path.read_text())
        traffic = kept.pop("traffic")
        if traffic is not None:
            kinds = {k: Collective(**x) for k, x in traffic["collectives"].items()}
            traffic = Traffic(traffic["memory"], kinds)
        return Measured(**kept, traffic=traffic)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: pathlib.Path, found: Measured) -> None:
    """Keeps a measurement; a folder that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(asdict(found)))
        part.replace(path)
    except OSError:
        pass
