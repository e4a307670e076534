"""What a run's memory does over many iterations, and who holds it.

    JAX_PLATFORMS=cpu python benchmarks/memory_growth.py [ITERATIONS]
    JAX_PLATFORMS=cpu python benchmarks/memory_growth.py [ITERATIONS] --trim
    MALLOC_ARENA_MAX=1 JAX_PLATFORMS=cpu python benchmarks/memory_growth.py [ITERATIONS]
    JAX_PLATFORMS=cpu python benchmarks/memory_growth.py [ITERATIONS] --trace

A run of the tests' tiny model in this process; a line behind each iteration: resident
anonymous memory, what the C library holds in use and free, the arrays that JAX holds,
Python's objects, and what was compiled so far. --trim asks the C library to give free
memory back each time; --trace ends with the lines of Python that hold more than after
the fifth iteration.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import pathlib
import sys
import tempfile
import tracemalloc
from typing import Any

import jax
from measure import anonymous_bytes, versions

from tpmm_jax import iterate
from tpmm_jax.commands.train import main as train
from tpmm_jax.loop.run import Run

TESTS = pathlib.Path(__file__).parents[1] / "tests" / "loop"
CONFIG = "from tiny_run import get_config as tiny\n\n\ndef get_config():\n    return "
WARM = 5
MIB = 2**20


class _Mallinfo(ctypes.Structure):
    """glibc's mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


LIBC = ctypes.CDLL("libc.so.6")
LIBC.mallinfo2.restype = _Mallinfo


class Watch:
    """Prints a line behind every iteration, in place of ``iterate.print_table``."""

    def __init__(self, trim: bool, trace: bool) -> None:
        self._trim, self._trace = trim, trace
        self._compiled = self._lines = 0
        self._warm: tracemalloc.Snapshot | None = None
        self._print = iterate.print_table
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event: str, _: float, **__: Any) -> None:
        self._compiled += event.endswith("backend_compile_duration")

    def __call__(self, run: Run) -> None:
        self._print(run)
        gc.collect()
        if self._trim:
            LIBC.malloc_trim(0)
        info = LIBC.mallinfo2()
        arrays = jax.live_arrays()
        self._lines += 1
        row = {
            "iteration": self._lines,
            "anonymous_mib": anonymous_bytes() / MIB,
            "c_in_use_mib": (info.uordblks + info.hblkhd) / MIB,
            "c_free_mib": info.fordblks / MIB,
            "arrays": len(arrays),
            "arrays_mib": sum(a.nbytes for a in arrays) / MIB,
            "objects": len(gc.get_objects()),
            "compiled": self._compiled,
        }
        if self._trace:
            row["python_mib"] = tracemalloc.get_traced_memory()[0] / MIB
            if self._lines == WARM:
                self._warm = tracemalloc.take_snapshot()
        shown = json.dumps({name: round(value, 2) for name, value in row.items()})
        # The run's own words go nowhere.
        print(shown, file=sys.__stdout__, flush=True)

    def differences(self) -> None:
        """Prints the lines of Python that hold most of what was added."""
        if self._warm is not None:
            now = tracemalloc.take_snapshot()
            for line in now.compare_to(self._warm, "lineno")[:25]:
                print(line)


def main() -> None:
    """Prints the lines, and the versions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("iterations", type=int, nargs="?", default=40)
    parser.add_argument("--trim", action="store_true")
    parser.add_argument("--trace", action="store_true")
    args = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    watch = Watch(args.trim, args.trace)
    iterate.print_table = watch
    if args.trace:
        tracemalloc.start(1)
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "config.py"
        config.write_text(f"{CONFIG}tiny(iterations={args.iterations})\n")
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            train(["--config", str(config), "--workdir", f"{folder}/run"])
    watch.differences()
    print(versions())


if __name__ == "__main__":
    main()
