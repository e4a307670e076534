"""What the benchmarks share: memory of this process, versions, fresh processes."""

import json
import platform
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from typing import Any


def anonymous_bytes() -> int:
    """Resident anonymous memory: what is not backed by a file."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon; run this on Linux")


class PeakMemory:
    """Samples anonymous memory every few milliseconds while the block runs."""

    def __enter__(self) -> "PeakMemory":
        self.start = self.peak = anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.peak = max(self.peak, anonymous_bytes())
            time.sleep(0.002)

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous_bytes())


def fresh(script: str, *args: str) -> dict[str, Any]:
    """Runs a script in a fresh process; returns the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, script, *args], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def versions() -> str:
    """Returns Python's and the libraries' versions in a line."""
    names = ("jax", "flax", "optax", "orbax-checkpoint")
    found = [f"{name} {version(name)}" for name in names]
    return f"Python {platform.python_version()}, " + ", ".join(found)
