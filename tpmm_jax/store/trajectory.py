"""The trajectory: every iteration's policy, kept for good.

    directory/
      trajectory.jsonl   one line per committed step: digest, files and their sizes
      0/ 1/ 2/ ...       Orbax steps: policy (arrays), meta and integrity (JSON)

A step exists once its line is in trajectory.jsonl, and that line is written last.
What a restore returns has been compared with the fingerprints taken when the step
was saved, so that a changed bit is refused and never trained on.
"""

import contextlib
import json
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput, CorruptCheckpoint
from tpmm_jax.models import LoraConfig
from tpmm_jax.store import adapters, commit, deltas, manager, trees
from tpmm_jax.store.adapters import Base
from tpmm_jax.store.files import (
    PathLike,
    append_lines,
    canonical_json,
    sha256,
    storage_errors,
)
from tpmm_jax.store.fingerprint import changed_leaf, fingerprint, layout
from tpmm_jax.store.listing import (
    ITEMS,
    LIST,
    Entry,
    fault,
    read_list,
    refuse_fault,
    what_to_do,
)
from tpmm_jax.store.space import check_storage


class Trajectory:
    """The committed policies theta_0, theta_1, ... in a folder.

    Nothing is held in memory between calls; a reader sees what is on the disk.

    Args:
      directory: made if missing, unless read_only.
      storage: how later steps are stored: "float32", or "bfloat16_delta", the
        difference to step 0 rounded to bfloat16 (half the bytes; relative error of
        the difference at most 2^-8). Step 0 is always float32, and leaves that are
        not float32 are stored as they are. Steps already there keep theirs. "lora":
        `append` takes adapters, stores them alone, and step 0 pins the base.
      lora: what the adapters are, for "lora".
      base: the weights under them; needed to append step 0 and to restore policies.
      read_only: for evaluation; `append` refuses.

    Raises:
      BadInput: an unknown storage; or read_only and there is no such folder.
    """

    def __init__(
        self,
        directory: PathLike,
        *,
        storage: Literal["float32", "bfloat16_delta", "lora"] = "float32",
        lora: LoraConfig | None = None,
        base: Base | None = None,
        read_only: bool = False,
    ):
        check_storage(storage)
        self.directory = pathlib.Path(directory).absolute()
        self.storage = storage
        self.lora, self.base = lora, base
        self.read_only = read_only
        if not read_only:
            with storage_errors(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
        elif not self.directory.is_dir():
            raise BadInput(f"{self.directory}: there is no such trajectory folder")

    def __enter__(self) -> "Trajectory":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is pending outside `append`, which saves, waits and closes."""

    # ---- what is there

    def steps(self) -> list[int]:
        """The committed steps whose files are all there, in order."""
        return [e.step for e in self._entries() if fault(self.directory, e) is None]

    def damaged(self) -> dict[int, str]:
        """Committed steps whose files are not all there, with what is wrong."""
        faults = {e.step: fault(self.directory, e) for e in self._entries()}
        return {step: why for step, why in faults.items() if why is not None}

    def refuse_damaged(self) -> int:
        """Returns the number of committed steps; their files are all there.

        Raises:
          CorruptCheckpoint: they are not; names the step, the file and what to do.
        """
        entries = self._entries()
        for entry in entries:
            refuse_fault(self.directory, entry)
        return len(entries)

    def holds_adapters(self) -> bool:
        """True if the steps are adapters over a base that is kept elsewhere."""
        return any(entry.storage == "lora" for entry in self._entries())

    def digest(self, step: int) -> str:
        """The digest of the tree that `restore` gives for a step."""
        return self._entry(step).digest

    def meta(self, step: int) -> dict[str, Any]:
        """What `append` was given as meta, as JSON gives it back.

        Raises:
          BadInput: there is no such step.
          CorruptCheckpoint: it is not what was saved.
        """
        entry = self._entry(step)
        found = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        if sha256(found) != entry.meta:
            raise CorruptCheckpoint(
                f"step {step}, meta: {self.directory / str(step)} does not hold the "
                f"meta that was saved; {what_to_do(self.directory, step)}"
            )
        return found

    def abstract(self, step: int) -> Params:
        """Shapes and dtypes of a policy as nested ShapeDtypeStructs, no shardings."""
        pinned = self._integrity(self._entry(step))
        saved = pinned.get("base", pinned)["layout"]
        return trees.nest(
            {n: jax.ShapeDtypeStruct(s, jnp.dtype(d)) for n, (d, s) in saved.items()}
        )

    # ---- append

    def append(self, step: int, params: Params, meta: dict[str, Any]) -> str:
        """Saves the next step and commits it; returns when it is on the disk.

        Args:
          step: the number of committed steps.
          params: nested dict of arrays, sharded in any way; of storage "lora", the
            adapters.
          meta: whatever JSON can say.

        Returns:
          The digest of what `restore` will give.

        Raises:
          BadInput: read-only, a wrong step, or params or meta that cannot be stored.
          CorruptCheckpoint: an earlier step is damaged; names the step and the file.
          StorageError: the disk refuses; the earlier steps are as they were.
        """
        self._check_step(step)
        meta = json.loads(canonical_json(meta))
        stored = trees.flatten_params(params)
        first = self._integrity(self._entry(0)) if step > 0 else None
        if first is not None:
            if ("base" in first) != (self.storage == "lora"):
                raise BadInput(
                    f"{self.directory} was started with storage "
                    f"{first['storage']}, not {self.storage}; use the same"
                )
            trees.check_same(stored, first["layout"], came="params", against="step 0")
        if self.storage == "lora":
            saved = self._adapters_integrity(stored, first)
        else:
            # Of what a restore will give, not of what is stored.
            saved = {"layout": layout(stored), "storage": "float32"}
            if self.storage == "float32" or step == 0:
                saved["fingerprints"] = fingerprint(stored)
            else:
                saved["storage"] = self.storage
                stored, saved["fingerprints"] = self._differences(stored)
        files = commit.save_step(self.directory, step, trees.nest(stored), meta, saved)
        entry = Entry(
            step=step,
            digest=adapters.step_digest(saved),
            meta=sha256(meta),
            storage=saved["storage"],
            files=files,
            time=commit.now(),
        )
        append_lines(self.directory / LIST, [entry.line()])
        return entry.digest

    def _adapters_integrity(
        self, flat: dict[str, Any], first: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The integrity item of adapters; step 0 pins the base of all.

        Args:
          first: that item of step 0, for a later one.
        """
        if self.lora is None:
            raise BadInput('storage "lora" needs a LoraConfig (lora=...)')
        lora = adapters.describe(self.lora)
        if first is not None and lora != first["lora"]:
            raise BadInput(
                f"{self.directory} holds adapters of {first['lora']}, these are of "
                f"{lora}; one trajectory has one kind"
            )
        return {
            "fingerprints": fingerprint(flat),
            "layout": layout(flat),
            "storage": "lora",
            "base": first["base"] if first else adapters.pin(self._base().read()),
            "lora": lora,
        }

    def _base(self) -> Base:
        if self.base is None:
            raise BadInput(
                f"{self.directory} holds adapters, and their base was not given "
                "(base=...)"
            )
        return self.base

    def _check_step(self, step: int) -> None:
        if self.read_only:
            raise BadInput(f"{self.directory} was opened read-only; nothing is saved")
        count = self.refuse_damaged()
        if step != count:
            have = f"steps 0 to {count - 1}" if count else "no steps"
            raise BadInput(
                f"{self.directory} holds {have}: the next one is {count}, not "
                f"{step}; a committed step is never written again"
            )
        beyond = [
            n
            for n, folder in manager.numbered(self.directory).items()
            if n > step and manager.looks_whole(folder, ITEMS)
        ]
        if beyond:
            raise CorruptCheckpoint(
                f"{self.directory / LIST} lists {count} steps, but the folder "
                f"also holds step {beyond[0]}: lines are missing; restore the file "
                f"from a copy, or run `tpmm repair {self.directory.parent}`"
            )

    def _differences(
        self, flat: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, list[int]]]:
        """(what to store, fingerprints of what a restore will give)."""
        first = self._restore_flat(self._entry(0), flat)
        stored, sums = {}, {}
        for name, leaf in flat.items():
            stored[name], given = deltas.split(name, leaf, first.pop(name))
            sums.update(fingerprint({name: given}))
        return stored, sums

    # ---- restore

    def restore(self, step: int, target: Params) -> Params:
        """Reads a step and compares it with the fingerprints taken at its save.

        Args:
          step: a committed one.
          target: nested dict of jax.ShapeDtypeStruct (or arrays), with the shardings
            wanted, on any mesh; a leaf without one goes to one device. The dtype is
            what was appended: no cast is made.

        Returns:
          The params, with the target's structure and shardings.

        Raises:
          BadInput: no such step, or a leaf of the target differs; names the leaf.
          CorruptCheckpoint: a leaf or a file is not what was saved; names it.
        """
        entry = self._entry(step)
        wanted = trees.flatten_params(target)
        return trees.like(target, self._restore_flat(entry, wanted))

    def restore_part(
        self, step: int, target: Params, known: Params | None = None
    ) -> Params:
        """Reads some leaves of a step, compared with the fingerprints as by `restore`.

        Args:
          step: a committed one.
          target: as of `restore`, with at least one of the leaves.
          known: those leaves, or more, of what the step is stored as a difference to,
            if it is one: of step 0; of adapters, of `restore_base`. What has no
            adapter is given back as it is. None: read, of adapters the whole base.
        """
        entry = self._entry(step)
        wanted = trees.flatten_params(target)
        leaves = {} if known is None else trees.flatten_params(known)
        under = {name: leaves[name] for name in wanted if name in leaves} or None
        return trees.like(target, self._restore_flat(entry, wanted, under, part=True))

    def restore_base(self) -> Params:
        """Reads the weights under the adapters and compares them with step 0's pin.

        Raises:
          BadInput: there is none, or they are not those the run began with.
        """
        return self._base().checked(self._integrity(self._entry(0))["base"])

    def lora_of(self, step: int) -> LoraConfig:
        """Rank, scale and targets of a step's adapters, without dropout."""
        return LoraConfig(**self._integrity(self._entry(step))["lora"])

    def restore_adapters(self, step: int, target: Params) -> Params:
        """Reads a step's adapters, to train them further; as `restore` otherwise."""
        entry = self._entry(step)
        if entry.storage != "lora":
            raise BadInput(
                f"step {step} of {self.directory} is a whole policy ({entry.storage}), "
                "not adapters"
            )
        wanted = trees.flatten_params(target)
        flat = self._stored_flat(entry, wanted, self._integrity(entry))
        return trees.like(target, flat)

    def _stored_flat(
        self,
        entry: Entry,
        wanted: dict[str, Any],
        saved: dict[str, Any],
        under: dict[str, Any] | None = None,
        part: bool = False,
    ) -> dict[str, Any]:
        """What is stored of a step, compared with its fingerprints; differences joined.

        Args:
          saved: the step's integrity item.
          under: the wanted leaves of step 0; None: they are read.
          part: leaves that are not wanted are left out.

        Raises:
          CorruptCheckpoint: a leaf differs; names it.
        """
        against, sums = f"step {entry.step}", saved["fingerprints"]
        trees.check_same(
            wanted, saved["layout"], came="target", against=against, part=part
        )
        if entry.storage == "bfloat16_delta":
            keep, flat = under is not None, dict(under or {})
            if not keep:
                flat = self._restore_flat(self._entry(0), wanted, part=part)
            differences = self._read_flat(entry.step, wanted, rounded=True)
            for name in wanted:
                flat[name] = deltas.join(flat[name], differences.pop(name), keep=keep)
        else:
            flat = self._read_flat(entry.step, wanted, rounded=False)
        if changed := changed_leaf(flat, {name: sums[name] for name in flat}):
            name, now = changed
            raise CorruptCheckpoint(
                f"{against}, leaf {name}: {self.directory} holds other bits than were "
                f"saved (fingerprint {now}, saved {sums[name]}); "
                f"{what_to_do(self.directory, entry.step)}"
            )
        return flat

    def _restore_flat(
        self,
        entry: Entry,
        wanted: dict[str, Any],
        under: dict[str, Any] | None = None,
        part: bool = False,
    ) -> dict[str, Any]:
        """A policy by name: what is stored or, of adapters, their sum with the base.

        Args:
          under: the wanted leaves of step 0 or of the base; None: they are read.
        """
        saved = self._integrity(entry)
        if entry.storage != "lora":
            return self._stored_flat(entry, wanted, saved, under, part)
        pinned, against = saved["base"], f"step {entry.step}"
        trees.check_same(
            wanted, pinned["layout"], came="target", against=against, part=part
        )
        if under is None:
            base = trees.flatten_params(self._base().checked(pinned))
            under = {name: base[name] for name in wanted}
        own = adapters.wanted_adapters(saved, wanted)
        flat = self._stored_flat(entry, own, saved, part=part) if own else {}
        return adapters.join(under, flat, saved, wanted)

    def _read_flat(
        self, step: int, wanted: dict[str, Any], *, rounded: bool
    ) -> dict[str, Any]:
        target = {
            name: manager.abstract(
                name, leaf, deltas.stored_dtype(leaf.dtype) if rounded else leaf.dtype
            )
            for name, leaf in wanted.items()
        }
        item = trees.nest(target)
        # Standard but for what is not asked for, which stays on the disk.
        args = ocp.args.PyTreeRestore(
            item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        )
        found = trees.flatten_params(self._read(step, policy=args)["policy"])
        # What Orbax does not find of a part, it gives back as it was asked for.
        if lost := [n for n, x in found.items() if isinstance(x, jax.ShapeDtypeStruct)]:
            raise CorruptCheckpoint(
                f"step {step}, leaf {lost[0]}: {self.directory / str(step)} does not "
                f"hold it; {what_to_do(self.directory, step)}"
            )
        return found

    def _integrity(self, entry: Entry) -> dict[str, Any]:
        saved = self._read(entry.step, integrity=ocp.args.JsonRestore())["integrity"]
        with contextlib.suppress(KeyError, TypeError, ValueError, BadInput):
            if adapters.step_digest(saved) == entry.digest:
                return saved
        raise CorruptCheckpoint(
            f"step {entry.step}, integrity: {self.directory / str(entry.step)} does "
            f"not hold the fingerprints that were saved; "
            f"{what_to_do(self.directory, entry.step)}"
        )

    def _read(self, step: int, **args: Any) -> Any:
        return manager.read_items(
            self.directory, step, what_to_do(self.directory, step), **args
        )

    # ---- the list

    def _entries(self) -> list[Entry]:
        return read_list(self.directory, repair=not self.read_only)

    def _entry(self, step: int) -> Entry:
        entries = self._entries()
        if not 0 <= step < len(entries):
            raise BadInput(
                f"{self.directory} has no step {step}; it holds "
                f"{[e.step for e in entries]}"
            )
        refuse_fault(self.directory, entries[step])
        return entries[step]
