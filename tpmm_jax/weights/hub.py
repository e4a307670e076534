"""Names of models: what is a hub id, what a run's policy; and fetching the former."""

import os
import pathlib
import re
from collections.abc import Sequence

from tpmm_jax.errors import BadInput, nearest_path

# What a hub repository is asked for: nothing that could be code or a pickle.
DESCRIPTION_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
WEIGHT_FILES = ("*.safetensors",)
# Weights of another model or a second time: in a subfolder, in Mistral's own format.
OTHER_WEIGHTS = ("*/*", "consolidated*")
# Folders of a run's workdir: its policies, or its reward models.
TRAJECTORY, REWARD = "trajectory", "reward"
TRAJECTORY_STEP = re.compile(
    r"(?P<workdir>.*/)?(?P<kept>trajectory|reward)@(?P<step>\d+|(?<=reward@)best)"
)
# A run's policy by name: its newest, a mean of all, or a mean up to a step.
POLICY = re.compile(
    r"(?P<workdir>.*/)?policy@(?P<name>last|mean|learned)(\.\.(?P<step>\d+))?"
)


def is_hub_id(name: str) -> bool:
    """Whether ``name`` reads as org/name and nothing of that name lies on disk."""
    looks = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
    return (
        looks
        and not name.lower().endswith(".gguf")
        and not TRAJECTORY_STEP.fullmatch(name)
        and name.split("/")[0] not in (".", "..")
        and not os.path.exists(name)
    )


def fetch(
    name: str, revision: str | None, files: Sequence[str], ignore: Sequence[str] = ()
) -> tuple[pathlib.Path, str]:
    """Downloads files of a hub repository.

    Args:
      name: "org/name".
      revision: a branch, tag or commit; None: the default branch.
      files, ignore: patterns of the wanted files, and of those left out of them.

    Returns:
      The snapshot's folder and the resolved commit.

    Raises:
      BadInput: no such repository, or it cannot be reached.
    """
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(files),
            ignore_patterns=list(ignore),
        )
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise BadInput(
            f"{name}: neither a local directory nor a hub repository that can be "
            f"fetched ({type(error).__name__}: {first}); check the name, the network "
            f"and, for a gated model, `hf auth login`{nearest_path(name)}"
        ) from None
    return pathlib.Path(path), pathlib.Path(path).name
