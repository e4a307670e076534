"""sessions.jsonl: when, how and with which libraries a run was started."""

import json
import pathlib
import shlex
import sys
import time
from typing import Any

import jax

from tpmm_jax.log.versions import versions
from tpmm_jax.store.files import append_lines


def log_session(workdir: pathlib.Path, *, resumed: bool, **facts: Any) -> None:
    """Appends a row for this start of the command.

    Args:
      resumed: whether an earlier start left something to go on from.
      facts: what else the row says, such as next_iteration, the first to be run.
    """
    devices = jax.devices()
    row = {
        "time": round(time.time(), 3),
        "command": command_line(sys.orig_argv),
        "resumed": resumed,
        **facts,
        "versions": versions(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }
    append_lines(workdir / "sessions.jsonl", [json.dumps(row)])


def command_line(argv: list[str]) -> str:
    """Returns the command as one types it."""
    if len(argv) > 1 and pathlib.Path(argv[1]).name == "tpmm":
        return shlex.join(["tpmm", *argv[2:]])
    return shlex.join(["python", *argv[1:]])
