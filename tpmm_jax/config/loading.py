"""From a config file and overrides to a configuration that was checked."""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import pathlib
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from tpmm_jax.config.fields import flatten, set_field
from tpmm_jax.config.reward import RewardConfig
from tpmm_jax.config.schema import Config
from tpmm_jax.errors import BadInput, nearest, nearest_path, user_lines
from tpmm_jax.stopping import call_user

# The command that each kind of configuration belongs to.
COMMANDS = {Config: "tpmm train", RewardConfig: "tpmm train_reward"}
Kind = TypeVar("Kind", Config, RewardConfig)


@typing.overload
def load_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Config: ...


@typing.overload
def load_config(
    path: str | os.PathLike, overrides: Sequence[str] = (), *, kind: type[Kind]
) -> Kind: ...


@typing.overload
def load_config(
    path: str | os.PathLike, overrides: Sequence[str] = (), *, kind: None
) -> Config | RewardConfig: ...


def load_config(
    path: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    kind: type | None = Config,
) -> Any:
    """Runs a config file, applies overrides, validates; returns the configuration.

    The file is code and is run as such: use only files you trust. Its folder joins
    the import path, so that a scorer may live beside it.

    Args:
      overrides: "dotted.name=value", as after --set.
      kind: the class that is wanted; None: that of any command.

    Raises:
      BadInput: whatever is wrong, with what was wanted.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise BadInput(f"--config {path}: no such file{nearest_path(path)}")
    for place in (os.getcwd(), str(path.parent.resolve())):
        if place not in sys.path:
            sys.path.append(place)
    # Under its own name, so that a scorer "name:function" is this very module.
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"--config {path}: wanted a .py file, Python with get_config()")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    execute = functools.partial(spec.loader.exec_module, module)
    try:
        call_user(str(path), execute)
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise BadInput(f"{path} defines no get_config()")
        config = call_user(str(path), get_config)
    except BadInput:
        raise
    except TypeError as error:
        text = f"{path}: {_explain(str(error))}{user_lines(error)}"
        raise BadInput(text) from error
    except Exception as error:
        text = f"{path}: {type(error).__name__}: {error}{user_lines(error)}"
        raise BadInput(text) from error
    _check_kind(config, kind, path)
    for override in overrides:
        config = set_field(config, override)
    config.validate()
    _refuse_copied_names(config, vars(module), path.stem)
    return config


def _refuse_copied_names(config: Any, own: dict[str, Any], stem: str) -> None:
    """Raises BadInput where a copied config names a function of the one it was.

    It would run, with functions that nobody edits.
    """
    for field, value in flatten(config).items():
        several = isinstance(value, Mapping | list | tuple)
        items = value.values() if isinstance(value, Mapping) else value
        for name in items if several else [value]:
            other, _, attribute = str(name).partition(":")
            function = own.get(attribute) if attribute else None
            if other == stem or getattr(function, "__module__", "") != stem:
                continue
            found = None
            if other.isidentifier():
                with contextlib.suppress(ValueError, ImportError):
                    found = importlib.util.find_spec(other)
            file = found.origin if found is not None and found.has_location else None
            if file and "def get_config(" in pathlib.Path(file).read_text("utf-8"):
                raise BadInput(
                    f"{field} = {name!r} names a function of another config, and "
                    f"{stem}.py has a function {attribute} of its own: write "
                    f"{stem}:{attribute}, or rename one of them"
                )


def _check_kind(config: Any, kind: type | None, path: pathlib.Path) -> None:
    """Raises BadInput where a config is of another command, or none."""
    kinds = (Config, RewardConfig) if kind is None else (kind,)
    if isinstance(config, kinds):
        return
    came = type(config)
    if kind is not None and came in COMMANDS:
        raise BadInput(
            f"{path} configures another command: get_config() returned a "
            f"{came.__name__}, which is for {COMMANDS[came]}; {COMMANDS[kind]} wants a "
            f"{kind.__name__}"
        )
    raise BadInput(
        f"{path}: get_config() returned a {came.__name__}; wanted a "
        f"tpmm_jax.config.{' or '.join(one.__name__ for one in kinds)}"
    )


def _explain(message: str) -> str:
    """Adds the nearest field to Python's message on an unknown keyword."""
    marker = "unexpected keyword argument "
    if marker not in message:
        return message
    wrong = message.split(marker)[1].split("'")[1]
    owner = message.split(".")[0]
    owners = {c.__name__: c for kind in COMMANDS for c in _dataclasses(kind)}
    names = (
        [f.name for f in dataclasses.fields(owners[owner])] if owner in owners else []
    )
    return f"{owner} has no field {wrong!r}" + nearest(wrong, names)


def _dataclasses(cls: Any) -> list[Any]:
    hints = typing.get_type_hints(cls)
    found = [cls]
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            found += _dataclasses(hints[f.name])
    return found
