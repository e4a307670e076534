"""tpmm export --push: the written directory as a commit on the Hugging Face Hub."""

import fnmatch
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from tpmm_jax.errors import BadInput, StorageError

# A run's own files, which go along in a folder of the repository.
RUN_FILES, FOLDER = ("config.json", "report.html"), "training"
# What an earlier push may have left, and readers would take for this model's.
REPLACED = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")


def check_push(name: str, private: bool) -> None:
    """Refuses, before any work, a repository that could not be written in the end.

    Raises:
      BadInput: the name is none, nobody is logged in or only to read, it is another's,
        or it is public and was to be private.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise BadInput(f"--push is {name!r}; wanted a hub id such as org/name")
    try:
        user = HfApi().whoami()
        found = HfApi().model_info(name)
    except RepositoryNotFoundError:
        found = None
    except Exception as error:
        raise BadInput(
            f"--push {name}: {type(error).__name__}: {_first_line(error)} (to log in: "
            "`hf auth login`, or HF_TOKEN with a token that may write)"
        ) from None
    owners = [user["name"], *(org["name"] for org in user.get("orgs", []))]
    if name.partition("/")[0] not in owners:
        raise BadInput(
            f"--push {name}: {user['name']} can write to {', '.join(owners)}; name one "
            "of these"
        )
    if _role(user) == "read":
        raise BadInput(f"--push {name}: the token may read only; take one that writes")
    if private and found is not None and not found.private:
        raise BadInput(
            f"--push {name} --private: that repository is public; make it private "
            "there, or choose another"
        )


def _role(user: dict[str, Any]) -> str | None:
    return user.get("auth", {}).get("accessToken", {}).get("role")


def push(
    name: str, directory: pathlib.Path, workdir: pathlib.Path | None, private: bool
) -> str:
    """Commits a directory's files, and those of the run that made it.

    Weights that are there and not in the directory are removed by the same commit.

    Args:
      name: "org/name"; the repository is made if there is none.
      workdir: of the run; None: it is none's.
      private: of a new repository.

    Returns:
      Where the commit can be seen.

    Raises:
      StorageError: the hub refuses or cannot be reached; the directory is as it was.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = {path.name: path for path in sorted(directory.iterdir())}
    files |= {f"{FOLDER}/{path.name}": path for path in _run_files(workdir)}
    try:
        api = HfApi()
        # None: as the owner's settings have it.
        made = api.create_repo(name, private=private or None, exist_ok=True)
        there = api.list_repo_files(made.repo_id)
        gone = [
            old
            for old in there
            if old not in files and any(fnmatch.fnmatch(old, p) for p in REPLACED)
        ]
        commit = api.create_commit(
            made.repo_id,
            [
                *(CommitOperationAdd(path, str(file)) for path, file in files.items()),
                *(CommitOperationDelete(old) for old in gone),
            ],
            commit_message="Upload a model of tpmm_jax",
        )
    except Exception as error:
        option = " --private" if private else ""
        raise StorageError(
            f"--push {name}: {type(error).__name__}: {_first_line(error)}; {directory} "
            f"is complete: hf upload {name} {directory}{option}"
        ) from error
    return commit.commit_url


def _run_files(workdir: pathlib.Path | None) -> Sequence[pathlib.Path]:
    if workdir is None:
        return []
    return [path for name in RUN_FILES if (path := workdir / name).exists()]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
