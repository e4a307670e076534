"""A model's sizes, found without its weights and without its tokenizer."""

import difflib
import pathlib

from tpmm_jax.errors import BadInput
from tpmm_jax.models import ModelConfig
from tpmm_jax.models.published import HUB, SIZES
from tpmm_jax.weights.description import read_config
from tpmm_jax.weights.hub import is_hub_id
from tpmm_jax.weights.loading import resolve_any


def find_sizes(name: str, option: str, base: str | None = None) -> ModelConfig:
    """Returns the architecture that a name stands for.

    The hub is not asked, but for the base that a PEFT directory names.

    Args:
      name: a directory with a config.json, a run's workdir, what a config may name as
        its source, a published model ("gemma-2b"), or a hub id of one.
      option: what named it, for messages.

    Raises:
      BadInput: nothing of that name is at hand.
    """
    path = pathlib.Path(name)
    for folder in (path, path / "model"):
        # A workdir's own config.json is the run's.
        if (folder / "config.json").is_file() and not (folder / "model").is_dir():
            return read_config(folder)
    if name in SIZES or name in HUB:
        return SIZES[HUB.get(name, name)]
    if path.exists() or (path.parent.exists() and "@" in name):
        return resolve_any([name], base)[0].config
    near = difflib.get_close_matches(name, [*SIZES, *HUB], n=1)
    known = f" (did you mean {near[0]}?)" if near else ""
    if is_hub_id(name):
        raise BadInput(
            f"{option} = {name}: these sizes are not known here, and the hub is not "
            f"asked{known}; give --model a directory with the model's config.json, or "
            f"one of {', '.join(SIZES)}"
        )
    if ":" in name:
        raise BadInput(
            f"{option} = {name} is made when the run starts; give --model the workdir "
            "of a run that has started, or a directory with the model's config.json"
        )
    raise BadInput(
        f"{option} = {name}: no such file or directory{known}; wanted a directory "
        f"with a config.json, a hub id, or one of {', '.join(SIZES)}"
    )
