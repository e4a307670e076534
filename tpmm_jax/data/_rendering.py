"""Chat templates are rendered in a process of their own, which limits can stop.

A template is a program that comes with a model. Jinja's sandbox keeps it from files,
not from loops without an end or from texts that fill the memory; and no exception
reaches a process that builds one.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any, cast

from tpmm_jax.data import _render_child
from tpmm_jax.errors import BadInput, TpmmError

SECONDS = 10  # of work, for one conversation
MEMORY = 2**29  # bytes beyond what the process takes by itself
LENGTH = 2**24  # characters of one conversation
_LIMITS = {
    "time": f"it worked for {SECONDS} seconds",
    "memory": f"it took {MEMORY // 2**20} MiB of memory",
    "length": f"it wrote more than {LENGTH:,} characters",
}


class TemplateStopped(BadInput):
    """A template went over a limit; it concerns the whole source."""


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    opens: bool,
    variables: Mapping[str, Any],
) -> str:
    """Returns messages as a chat template writes them.

    Args:
      template: Jinja source.
      opens: add_generation_prompt.
      variables: what the template reads beside the messages.

    Raises:
      ValueError: the template fails; says what it raised.
      TemplateStopped: it goes over SECONDS, MEMORY or LENGTH.
    """
    request = {
        **variables,
        "conversations": [list(messages)],
        "chat_template": template,
        "add_generation_prompt": opens,
    }
    answer = _CHILD.ask(request)
    if "stopped" in answer:
        raise TemplateStopped(
            f"the chat template was stopped: {_LIMITS[answer['stopped']]} for one "
            "conversation; put another chat_template.jinja into the model's directory"
        )
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["text"]


class _Child:
    """The process: started when it is first asked, and again after it was stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        """The answer to a request."""
        with self._lock:
            # What a forked process holds belongs to the one that it was forked off.
            if self._process is None or self._owner != os.getpid():
                self._process, self._owner = _start(), os.getpid()
            try:
                _send(self._process, request)
                line = cast(IO[str], self._process.stdout).readline()
            except BrokenPipeError:
                line = ""
            except BaseException:
                # Ctrl-C between question and answer: the next answer would be this one.
                self.close()
                raise
            if line:
                return json.loads(line)
            code = self._process.wait()
            self.close()
            if code == -signal.SIGPROF:
                return {"stopped": "time"}
            raise TpmmError(
                f"the process that renders chat templates ended with code {code}; run "
                f"{sys.executable} -c 'import transformers' to see whether it can start"
            )

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
        self._process = None


def _start() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-P", _render_child.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Numeric libraries take memory for every thread, and nothing computes here.
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        # Ctrl-C is for this process alone.
        start_new_session=True,
        encoding="ascii",
    )
    limits = {"seconds": SECONDS, "memory": MEMORY, "length": LENGTH}
    _send(process, limits | {"path": sys.path})
    return process


def _send(process: subprocess.Popen[str], content: dict[str, Any]) -> None:
    pipe = cast(IO[str], process.stdin)
    pipe.write(json.dumps(content) + "\n")
    pipe.flush()


_CHILD = _Child()
atexit.register(_CHILD.close)
