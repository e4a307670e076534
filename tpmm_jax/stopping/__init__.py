"""How a process ends before its work does: it is asked to, or a user's function hangs.

Only the standard library is imported here, so that a command can be stopped while it
still imports JAX.
"""

from tpmm_jax.stopping.calls import TIMEOUT, call_user, refuse_exit
from tpmm_jax.stopping.signals import (
    asked,
    boundaries,
    ends_process,
    ends_with,
    keyboard_as_before,
    signals_left_alone,
    watched,
)

__all__ = [
    "TIMEOUT",
    "asked",
    "boundaries",
    "call_user",
    "ends_process",
    "ends_with",
    "keyboard_as_before",
    "refuse_exit",
    "signals_left_alone",
    "watched",
]
