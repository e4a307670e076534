"""sessions.jsonl: when, how and with which libraries a run was started."""

import json
import pathlib
import shlex
import sys
import time

import jax

from tpmm_jax.config import Config
from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.log.versions import versions
from tpmm_jax.store.files import append_lines


def log_session(
    workdir: pathlib.Path, config: Config, steps: list[int], *, resumed: bool
) -> None:
    """Appends a row for this start of the command.

    Args:
      steps: of the trajectory.
      resumed: whether theta_0 was there before this start.
    """
    rows = {row["iteration"] for row in iteration_rows(workdir)}
    unfinished = [
        t for t in range(config.iterations + 1) if t not in rows or t not in steps
    ]
    devices = jax.devices()
    row = {
        "time": round(time.time(), 3),
        "command": command_line(sys.orig_argv),
        "resumed": resumed,
        # 0 where theta_0 is still to be evaluated; T + 1 where nothing is left.
        "next_iteration": (unfinished or [config.iterations + 1])[0],
        "versions": versions(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }
    append_lines(workdir / "sessions.jsonl", [json.dumps(row)])


def command_line(argv: list[str]) -> str:
    """Returns the command as one types it."""
    if len(argv) > 1 and pathlib.Path(argv[1]).name == "tpmm":
        return shlex.join(["tpmm", *argv[2:]])
    return shlex.join(["python", *argv[1:]])
