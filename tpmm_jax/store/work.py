"""Checkpoints inside an iteration: the newest two, saved in the background.

A state is any tree of arrays (parameters, optimizer state with its named tuples,
keys, counters) and comes back with the structure of the target it is restored to.
On the disk it is a list of leaves with their names, so that no container type has to
be known to whoever reads it.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from tpmm_jax.errors import BadInput, CorruptCheckpoint, StorageError
from tpmm_jax.hosts import once
from tpmm_jax.store import manager, trees
from tpmm_jax.store.files import (
    PathLike,
    canonical_json,
    remove_tree,
    sha256,
    storage_errors,
)
from tpmm_jax.store.fingerprint import changed_leaf, fingerprint, layout

ITEMS = ("state", "loop", "integrity")
_TRASH = "_trash"


class WorkStore:
    """The training state of the iteration under way.

    One writer at a time (see `RunLock`). Use it as a context manager: a save that is
    under way when the block is left, by whatever way, is finished first.

    Args:
      directory: made if missing. Numbered folders in it that are not finished
        steps are removed.

    Raises:
      StorageError: the folder cannot be made or read.
    """

    def __init__(self, directory: PathLike):
        self.directory = pathlib.Path(directory).absolute()
        # The save under way: its step and its writer.
        self._saving: tuple[int, ocp.CheckpointManager] | None = None
        with storage_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        whole = self.steps()
        self._remove([n for n in manager.numbered(self.directory) if n not in whole])

    def __enter__(self) -> "WorkStore":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            # The first error is the one to show; this one goes along as a note.
            error.add_note(f"and the save under way failed: {failure}")

    def steps(self) -> list[int]:
        """The finished steps on the disk, in order."""
        folders = manager.numbered(self.directory)
        return sorted(n for n, f in folders.items() if manager.looks_whole(f, ITEMS))

    def latest(self) -> int | None:
        """The newest finished step, or None; a save under way does not count yet."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Any, loop: dict[str, Any]) -> None:
        """Starts saving a step, once the previous save is on the disk.

        The arrays may be donated or changed as soon as this returns. A step that is
        not newer than the latest replaces it and all that follow (a replay).

        Args:
          step: the caller's counter, >= 0.
          state: tree of arrays, typed keys and Python integers.
          loop: whatever JSON can say: position in the data, counters, digests.

        Raises:
          BadInput: a leaf or `loop` cannot be stored; names it.
          StorageError: the previous save failed, or this one cannot start.
        """
        if step < 0:
            raise BadInput(f"step is {step}; wanted a number >= 0")
        flat = _flatten(state)
        loop = json.loads(canonical_json(loop))
        integrity = {
            "layout": layout(flat),
            "order": list(flat),
            "fingerprints": fingerprint(flat),
            "loop": sha256(loop),
        }
        leaves = {_index(i): x for i, x in enumerate(flat.values()) if np.size(x)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(leaves or {_index(0): np.zeros(1, np.int32)}),
            loop=ocp.args.JsonSave(loop),
            integrity=ocp.args.JsonSave(integrity),
        )
        self.wait()
        self._remove([n for n in self.steps() if n >= step])
        with manager.save_errors(self.directory, step):
            writer = manager.open_manager(
                self.directory,
                preservation_policy=ocp.checkpoint_managers.LatestN(2),
                todelete_subdir=_TRASH,
                cleanup_tmp_directories=True,
            )
            with _closed_on_failure(writer):
                manager.save(writer, self.directory, step, args)
        self._saving = step, writer

    def wait(self) -> None:
        """Waits until the save under way is on the disk, and lets go of the folder.

        Raises:
          StorageError: it failed; names its path. Earlier steps are as they were.
        """
        if self._saving is None:
            return
        (step, writer), self._saving = self._saving, None
        with manager.save_errors(self.directory, step):
            with _closed_on_failure(writer):
                writer.wait_until_finished()
                if step not in self.steps():
                    raise StorageError(
                        f"{self.directory / str(step)} was saved but is missing"
                    )
            writer.close()
        self._remove([])

    def _remove(self, steps: list[int]) -> None:
        """Moves steps to the trash by one rename each, and empties the trash."""
        trash = self.directory / _TRASH

        def act() -> None:
            with storage_errors(trash):
                remove_tree(trash)
                for step in steps:
                    trash.mkdir(exist_ok=True)
                    (self.directory / str(step)).rename(trash / str(step))
                remove_tree(trash)

        once(act, f"remove {steps} of {self.directory}")

    def clear(self) -> None:
        """Removes every step; for the end of an iteration.

        A kill in between leaves whole steps or none: `loop` has to say which
        iteration a step belongs to.
        """
        self.wait()
        self._remove(list(manager.numbered(self.directory))[::-1])

    def restore(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
        """Reads a step and compares it with the fingerprints taken at its save.

        Args:
          step: one of `steps()`.
          target: the state's structure, with a jax.ShapeDtypeStruct (with sharding)
            or an array for each leaf; a Python integer gives one back.

        Returns:
          (state, loop).

        Raises:
          BadInput: no such step, or a leaf of the target differs; names it.
          CorruptCheckpoint: a leaf or a file is not what was saved; names it.
        """
        if step not in self.steps():
            raise BadInput(
                f"{self.directory} has no step {step}; it holds {self.steps()}"
            )
        notes = self._read(
            step, loop=ocp.args.JsonRestore(), integrity=ocp.args.JsonRestore()
        )
        saved, loop = notes["integrity"], notes["loop"]
        try:
            if saved["loop"] != sha256(loop):
                raise ValueError("loop differs from what was saved")
            fingerprints, order = saved["fingerprints"], saved["order"]
            if not fingerprints.keys() == saved["layout"].keys() == set(order):
                raise ValueError("integrity is not what was saved")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._corrupt(step, f"loop or integrity ({error})") from None
        wanted = _flatten(target)
        against = f"step {step}"
        trees.check_same(wanted, saved["layout"], came="target", against=against)
        flat = self._read_leaves(step, wanted, order)
        if changed := changed_leaf(flat, fingerprints):
            raise self._corrupt(step, f"leaf {changed[0]}")
        return _rebuild(target, wanted, flat), loop

    def _read_leaves(
        self, step: int, wanted: dict[str, Any], order: list[str]
    ) -> dict[str, Any]:
        targets = {n: manager.abstract(n, x, x.dtype) for n, x in wanted.items()}
        empty = {
            name: jnp.zeros(x.shape, x.dtype, device=x.sharding)
            for name, x in targets.items()
            if not x.size
        }
        places = {n: _index(i) for i, n in enumerate(order) if n not in empty}
        target = {place: targets[name] for name, place in places.items()}
        target = target or {_index(0): manager.abstract("", np.zeros(1), np.int32)}
        leaves = self._read(step, state=ocp.args.StandardRestore(target))["state"]
        return {name: leaves[place] for name, place in places.items()} | empty

    def _read(self, step: int, **args: Any) -> Any:
        return manager.read_items(self.directory, step, self._advice(step), **args)

    def _corrupt(self, step: int, what: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(
            f"step {step}, {what}: {self.directory / str(step)} does not hold what "
            f"was saved; {self._advice(step)}"
        )

    def _advice(self, step: int) -> str:
        older = [n for n in self.steps() if n < step]
        then = f"from step {older[-1]}" if older else "with the iteration's start"
        return f"move that folder elsewhere and the run continues {then}"


@contextlib.contextmanager
def _closed_on_failure(writer: ocp.CheckpointManager) -> Iterator[None]:
    """Closes a writer on the way out of an error, which closing would raise again."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            writer.close()
        raise


def _index(i: int) -> str:
    return f"leaf_{i:05d}"


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _flatten(state: Any) -> dict[str, Any]:
    """keystr -> array (or abstract array); keys become their data.

    Raises:
      BadInput: a leaf that cannot be stored exactly; names it.
    """
    flat = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        if _is_key(leaf):
            flat[name] = _key_data(leaf)
            continue
        if isinstance(leaf, int) and not isinstance(leaf, bool):
            if not -(2**31) <= leaf < 2**31:
                raise BadInput(f"leaf {name} is {leaf}: more than 32 bits; see `loop`")
            leaf = np.asarray(leaf, np.int32)
        elif isinstance(leaf, np.generic | bool):
            leaf = np.asarray(leaf)
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not trees.is_storable(dtype):
            raise BadInput(
                f"leaf {name} is {dtype or type(leaf).__name__}; a state holds arrays "
                "of at most 32 bits, keys and integers; other things go into `loop`"
            )
        flat[name] = leaf
    return flat


def _key_data(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf)
    data = jax.eval_shape(jax.random.key_data, leaf)
    # The words of a key lie on a trailing axis, which no mesh axis splits.
    where = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=where)


def _rebuild(target: Any, wanted: dict[str, Any], flat: dict[str, Any]) -> Any:
    leaves: list[Any] = []
    for leaf, name in zip(jax.tree.leaves(target), wanted):
        found = flat[name]
        if _is_key(leaf):
            found = jax.random.wrap_key_data(found, impl=_impl(leaf))
        elif isinstance(leaf, bool | int):
            found = type(leaf)(np.asarray(found)[()])
        elif isinstance(leaf, np.generic | np.ndarray):
            found = np.asarray(found)
            found = found[()] if isinstance(leaf, np.generic) else found
        leaves.append(found)
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def _impl(leaf: Any) -> Any:
    """The kind of a typed key; asked under a trace, for the key may be abstract."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]
