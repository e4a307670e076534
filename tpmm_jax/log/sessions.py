"""sessions.jsonl: when, how and with which libraries a run was started."""

import json
import pathlib
import shlex
import sys
import time
from typing import Any

import jax

from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.versions import changed_versions, versions
from tpmm_jax.store.files import append_lines, read_lines_repaired

SESSIONS = "sessions.jsonl"


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
    append_lines(workdir / SESSIONS, [json.dumps(row)])


def last_session(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the row of the last start; {} if there is none that can be read."""
    lines = read_lines_repaired(workdir / SESSIONS)
    try:
        row = json.loads(lines[-1]) if lines else {}
    except ValueError:
        row = {}
    return row if isinstance(row, dict) else {}


def warn_versions(before: dict[str, Any], console: RunConsole) -> None:
    """Names the libraries that have another version than at the last start."""
    changed = changed_versions(before.get("versions"), versions())
    if changed:
        console.warn(
            f"library versions changed since the last start: {', '.join(changed)}; "
            "numbers may round differently from here on"
        )


def command_line(argv: list[str]) -> str:
    """Returns the command as one types it."""
    if len(argv) > 1 and pathlib.Path(argv[1]).name == "tpmm":
        return shlex.join(["tpmm", *argv[2:]])
    return shlex.join(["python", *argv[1:]])
