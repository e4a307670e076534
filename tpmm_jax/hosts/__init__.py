"""Many processes that run one host program on a shared folder.

jax.distributed connects them; here is what they say to one another beside that. Process
0 alone acts on the disk and calls what a user wrote, and the others learn what came of
it (``once``). Nothing waits inside a device's collective, whose deadline is short.
"""

from tpmm_jax.hosts.connecting import add_options, join, refuse_many
from tpmm_jax.hosts.meeting import (
    acts_alone,
    agree_same,
    asked_all,
    count,
    end,
    first_only,
    index,
    is_collective,
    leave,
    once,
    shared_fate,
)

__all__ = [
    "acts_alone",
    "add_options",
    "agree_same",
    "asked_all",
    "count",
    "end",
    "first_only",
    "index",
    "is_collective",
    "join",
    "leave",
    "once",
    "refuse_many",
    "shared_fate",
]
