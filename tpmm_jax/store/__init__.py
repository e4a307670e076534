"""What a run keeps on disk: the trajectory, the work checkpoints, small files."""

from tpmm_jax.store.adapters import Base
from tpmm_jax.store.files import (
    RunLock,
    append_lines,
    read_json,
    read_lines_repaired,
    write_json,
    write_npz,
    write_text,
)
from tpmm_jax.store.fingerprint import digest, fingerprint, layout, tree_digest
from tpmm_jax.store.space import check_space, check_writable, disk_need
from tpmm_jax.store.trajectory import Trajectory
from tpmm_jax.store.work import WorkStore

__all__ = [
    "Base",
    "RunLock",
    "Trajectory",
    "WorkStore",
    "append_lines",
    "check_space",
    "check_writable",
    "digest",
    "disk_need",
    "fingerprint",
    "layout",
    "read_json",
    "read_lines_repaired",
    "tree_digest",
    "write_json",
    "write_npz",
    "write_text",
]
