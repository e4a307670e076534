"""Calling what a user wrote."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from tpmm_jax.errors import BadInput
from tpmm_jax.stopping import waits
from tpmm_jax.stopping.guard import GUARD

# Seconds that a user's function may take where nobody says otherwise.
TIMEOUT = 1800.0

T = TypeVar("T")


@contextlib.contextmanager
def refuse_exit(what: str, on: str = "") -> Iterator[None]:
    """Turns sys.exit into BadInput: its code, that of the command, may mean success.

    So it does with what is no Exception and no interruption (CancelledError).

    Args:
      what, on: see ``call_user``.
    """
    try:
        yield
    except SystemExit as error:
        code = "" if error.code is None else repr(error.code)
        raise BadInput(
            f"{what} called sys.exit({code}){on}; wanted code that returns, or raises "
            "an error"
        ) from error
    except (Exception, KeyboardInterrupt, waits.TimedOut):
        raise
    except BaseException as error:
        raise BadInput(f"{what} raised {type(error).__name__}: {error}{on}") from error


def call_user(
    what: str,
    call: Callable[[], T],
    *,
    timeout: float | None = None,
    option: str = "",
    on: str = "",
) -> T:
    """Returns what a user's function returns, and says so where it takes long.

    Args:
      what: as messages give it, such as "scorer my_scores:fluency".
      timeout: seconds; None: it may take for ever. It holds in the main thread. A
        command ends a few seconds later where the function cannot be interrupted.
      option: the field or option that sets ``timeout``, for messages.
      on: what it was called with, for messages, such as " (on 32 prompts)".

    Raises:
      BadInput: it did not return in time, asked Python to exit, or raised what is no
        Exception, such as asyncio.CancelledError.
    """
    GUARD.start()
    wait = waits.Wait(what, timeout, on, option)
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
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        wait.finish()
        if isinstance(error, waits.TimedOut) and error.wait is not wait:
            raise
        # The function may have turned the interruption into an error of its own.
        if wait.interrupted:
            GUARD.interrupted = True
            raise BadInput(wait.too_late()) from None
        with refuse_exit(what, on):
            raise
    finally:
        if ticks:
            waits.stop_ticking()
