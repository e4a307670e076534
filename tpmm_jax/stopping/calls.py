"""Calling what a user wrote."""

import threading
from collections.abc import Callable
from typing import TypeVar

from tpmm_jax.errors import BadInput
from tpmm_jax.stopping import waits
from tpmm_jax.stopping.guard import GUARD

# Seconds that a user's function may take where nobody says otherwise.
TIMEOUT = 1800.0

T = TypeVar("T")


def call_user(
    what: str,
    call: Callable[[], T],
    *,
    timeout: float | None = None,
    on: str = "",
) -> T:
    """Returns what a user's function returns, and says so where it takes long.

    Args:
      what: as messages give it, such as "scorer my_scores:fluency".
      timeout: seconds; None: it may take for ever. It holds in the main thread. A
        command ends a few seconds later where the function cannot be interrupted.
      on: what it was called with, for messages, such as " (on 32 prompts)".

    Raises:
      BadInput: it did not return in time.
    """
    GUARD.start()
    wait = waits.Wait(what, timeout, on)
    outermost = not waits.under_way
    ticks = outermost and threading.current_thread() is threading.main_thread()
    if ticks:
        waits.start_ticking()
    try:
        waits.under_way.append(wait)
        try:
            return call()
        finally:
            wait.finish()
    except (Exception, waits.TimedOut) as error:
        wait.finish()
        if isinstance(error, waits.TimedOut) and error.wait is not wait:
            raise
        # The function may have turned the interruption into an error of its own.
        if not wait.interrupted:
            raise
        GUARD.interrupted = True
        raise BadInput(wait.too_late()) from None
    finally:
        if ticks:
            waits.stop_ticking()
