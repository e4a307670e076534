"""Renders chat templates as a program of its own, within limits; see ``_rendering``.

The first line that it reads are its limits, then each line is a request; each answer is
a line too. It ends with its standard input, whatever asks a whole group of processes to
stop.
"""

import json
import os
import resource
import signal
import sys
from typing import Any

_TOO_LONG = {"stopped": "length"}


def main() -> None:
    """Answers requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    # Whatever libraries print must not stand among the answers.
    os.dup2(2, 1)
    start = json.loads(sys.stdin.readline())
    sys.path[:] = start["path"]
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory(start["memory"])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for asks in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(asks, signal.SIG_IGN)
    for line in sys.stdin:
        # The timer counts this process's own work; at its end the system kills it.
        signal.setitimer(signal.ITIMER_PROF, start["seconds"])
        answer = _answer(render_jinja_template, line, start["length"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(answer + "\n")
        answers.flush()


def _answer(render: Any, line: str, length: int) -> str:
    try:
        (text,), _ = render(**json.loads(line))
        return json.dumps({"text": text} if len(text) <= length else _TOO_LONG)
    except MemoryError:
        return json.dumps({"stopped": "memory"})
    except Exception as error:
        return json.dumps({"error": str(error) or type(error).__name__})


def _limit_memory(size: int) -> None:
    """Lets this process take that many bytes more; where the system can tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = taken + size if hard == resource.RLIM_INFINITY else min(taken + size, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main()
