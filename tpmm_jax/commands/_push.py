"""tpmm export --push: the written directory as a commit on the Hugging Face Hub."""

import pathlib
import re
from collections.abc import Sequence

from tpmm_jax.errors import BadInput, StorageError

# A run's own files, which go along in a folder of the repository.
RUN_FILES, FOLDER = ("config.json", "report.html"), "training"


def check_push(name: str) -> None:
    """Refuses, before any work, a repository that could not be written in the end.

    Raises:
      BadInput: the name is none, or nobody is logged in.
    """
    from huggingface_hub import HfApi

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise BadInput(f"--push is {name!r}; wanted a hub id such as org/name")
    try:
        HfApi().whoami()
    except Exception as error:
        raise BadInput(
            f"--push {name}: {_first_line(error)}; log in with `hf auth login`, or set "
            "HF_TOKEN to a token that may write"
        ) from None


def push(
    name: str, directory: pathlib.Path, workdir: pathlib.Path | None, private: bool
) -> str:
    """Commits a directory's files, and those of the run that made it.

    Args:
      name: "org/name"; the repository is made if there is none.
      workdir: of the run; None: it is none's.
      private: of a new repository.

    Returns:
      Where the commit can be seen.

    Raises:
      StorageError: the hub refuses or cannot be reached; the directory is as it was.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    files = {path.name: path for path in sorted(directory.iterdir())}
    files |= {f"{FOLDER}/{path.name}": path for path in _run_files(workdir)}
    try:
        api = HfApi()
        # None: as the owner's settings have it.
        made = api.create_repo(name, private=private or None, exist_ok=True)
        commit = api.create_commit(
            made.repo_id,
            [CommitOperationAdd(there, str(path)) for there, path in files.items()],
            commit_message="Upload a model of tpmm_jax",
        )
    except Exception as error:
        raise StorageError(
            f"--push {name}: {type(error).__name__}: {_first_line(error)}; {directory} "
            f"is complete: hf upload {name} {directory}"
        ) from error
    return commit.commit_url


def _run_files(workdir: pathlib.Path | None) -> Sequence[pathlib.Path]:
    if workdir is None:
        return []
    return [path for name in RUN_FILES if (path := workdir / name).exists()]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
