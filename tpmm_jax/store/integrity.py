"""What tells whether a step of the trajectory still holds what was saved."""

import pathlib
from typing import Any

from tpmm_jax.errors import CorruptCheckpoint
from tpmm_jax.store import adapters
from tpmm_jax.store.fingerprint import changed_leaf, digest
from tpmm_jax.store.listing import Entry, what_to_do


def step_digest(integrity: dict[str, Any]) -> str:
    """The digest of what a restore of a step gives."""
    if integrity.get("storage") == "lora":
        return adapters.total(integrity)
    return digest(integrity["fingerprints"], integrity["layout"])


def check_leaves(
    directory: pathlib.Path, entry: Entry, flat: dict[str, Any], saved: dict[str, Any]
) -> None:
    """Compares what was read of a step with its fingerprints.

    Raises:
      CorruptCheckpoint: a leaf differs; names it.
    """
    if changed := changed_leaf(flat, saved["fingerprints"]):
        name, now = changed
        raise CorruptCheckpoint(
            f"step {entry.step}, leaf {name}: {directory} holds other bits than were "
            f"saved (fingerprint {now}, saved {saved['fingerprints'][name]}); "
            f"{what_to_do(entry.step)}"
        )
