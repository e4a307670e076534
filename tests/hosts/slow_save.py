"""The tiny run on a disk on which a save takes seconds."""

import time

import tiny_run

from tpmm_jax.store.work import WorkStore

_wait = WorkStore.wait


def wait(store: WorkStore) -> None:
    if store._saving is not None:
        time.sleep(5)
    _wait(store)


WorkStore.wait = wait  # type: ignore[method-assign]
get_config = tiny_run.get_config
