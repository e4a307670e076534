"""What a run keeps on disk: the trajectory, the work checkpoints, small files."""

from tpmm_jax.store.adapters import Base
from tpmm_jax.store.files import RunLock, read_json, read_lines_repaired
from tpmm_jax.store.fingerprint import tree_digest
from tpmm_jax.store.space import check_space, check_writable, disk_need
from tpmm_jax.store.trajectory import Trajectory
from tpmm_jax.store.work import WorkStore

__all__ = [
    "Base",
    "RunLock",
    "Trajectory",
    "WorkStore",
    "check_space",
    "check_writable",
    "disk_need",
    "read_json",
    "read_lines_repaired",
    "tree_digest",
]
