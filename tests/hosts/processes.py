"""Commands in several real processes on one machine, each with devices of its own."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = (ROOT, ROOT / "tests/loop", ROOT / "tests/reward_runs", ROOT / "tests/hosts")
CONFIG = ROOT / "tests" / "loop" / "tiny_run.py"
REWARD = ROOT / "tests" / "reward_runs" / "tiny_reward.py"


@dataclass
class Process:
    """One of them, and the file that it writes to."""

    popen: subprocess.Popen
    log: pathlib.Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, seconds: float = 240) -> None:
        """Waits until it says something."""
        until = time.monotonic() + seconds
        while text not in self.said:
            assert self.popen.poll() is None, self.said
            assert time.monotonic() < until, f"no {text!r} in {self.said}"
            time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def start(
    logs: pathlib.Path,
    *words: object,
    module: str = "tpmm_jax.train",
    processes: int = 2,
    devices: int = 4,
    own: Sequence[Sequence[str]] = ((), ()),
    cache: pathlib.Path | None = None,
    folders: Sequence[pathlib.Path] | None = None,
) -> list[Process]:
    """Starts a command in processes that find one another.

    Args:
      words: the command's, the same for all.
      devices: of each process.
      own: further words of each process.
      cache: of compiled programs.
      folders: in which each process runs; None: in this one.
    """
    logs.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(map(str, FOLDERS)),
        "PYTHONUNBUFFERED": "1",
        "TPMM_BEGIN_SECONDS": "0",
    }
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        environment["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
    port, found = free_port(), []
    for i in range(processes):
        command = [sys.executable, "-m", module, *map(str, words), *own[i]]
        if processes > 1:
            command += ["--coordinator", f"localhost:{port}"]
            command += ["--num-processes", str(processes), "--process-id", str(i)]
        log = logs / f"{port}-{i}.log"
        with log.open("w") as file:
            popen = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=None if folders is None else folders[i],
            )
        found.append(Process(popen, log))
    return found


def finish(processes: Sequence[Process], seconds: float = 300) -> list[int]:
    """Returns the exit codes of all, negative where a signal ended one."""
    until = time.monotonic() + seconds
    try:
        return [one.popen.wait(max(0.1, until - time.monotonic())) for one in processes]
    finally:
        for one in processes:
            if one.popen.poll() is None:
                one.popen.send_signal(signal.SIGKILL)
                one.popen.wait()


def run(logs: pathlib.Path, *words: object, **options: object) -> str:
    """Runs a command to its end in all processes; returns what the first says."""
    made = start(logs, *words, **options)  # type: ignore[arg-type]
    codes = finish(made)
    assert set(codes) == {0}, "\n".join(one.said for one in made)
    return made[0].said


def rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of metrics.jsonl."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# Measures that are differences of log-probs of some 30 nats, of which one unit in the
# last place of a float32 is 2e-6, whatever the difference is.
OF_LOG_PROBS, ROUNDING = ("kl/", "rewards/", "heldout/margin"), 4e-6


def differences(ours: pathlib.Path, theirs: pathlib.Path) -> float:
    """Returns the largest |a - b| / (|b| + 1e-3) of two runs' metrics."""
    worst = 0.0
    for one, other in zip(rows(ours), rows(theirs), strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if isinstance(value, float):
                off = abs(one[name] - value)
                if name.startswith(OF_LOG_PROBS):
                    off = max(0.0, off - ROUNDING)
                worst = max(worst, off / (abs(value) + 1e-3))
            elif "digest" not in name:
                assert one[name] == value, (name, one, other)
    return worst
