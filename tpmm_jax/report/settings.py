"""The resolved configuration, beside the defaults or beside other runs'."""

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

from tpmm_jax.config import Config, flatten
from tpmm_jax.report.gather import RunData


@dataclass(frozen=True)
class Setting:
    """One field of a configuration.

    Attributes:
      name: dotted.
      value: as JSON.
      default: as JSON; "" where a field has none, "unknown" where this version of
        tpmm_jax has no such field.
      changed: whether the value is not the default.
    """

    name: str
    value: str
    default: str
    changed: bool


def settings(run: RunData, kind: type = Config) -> list[Setting]:
    """Returns every field of config.json with its default.

    Args:
      kind: the configuration's class.
    """
    defaults = default_values(kind)
    found = []
    for name, value in flatten(run.config).items():
        text, default = _text(value), _default_text(name, defaults)
        found.append(Setting(name, text, default, changed=default != text))
    return found


def _default_text(name: str, defaults: Mapping[str, Any]) -> str:
    if name in defaults:
        return "" if defaults[name] is MISSING else _text(defaults[name])
    entry = any(name.startswith(f"{known}.") for known in defaults)
    return "" if entry else "unknown"  # an entry of a mapping, such as scorer.options


def differences(runs: Sequence[RunData]) -> list[tuple[str, list[str]]]:
    """Returns (field, one value per run) where the runs' configurations differ.

    A run without the field, older than it, has "–".
    """
    flats = [flatten(run.config) for run in runs]
    names = dict.fromkeys(name for values in flats for name in values)
    found = []
    for name in names:
        texts = [_text(values[name]) if name in values else "–" for values in flats]
        if len(set(texts)) > 1:
            found.append((name, texts))
    return found


def default_values(cls: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {dotted name: default, or MISSING} of a dataclass's fields."""
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name, kind = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(kind):
            found |= default_values(kind, f"{name}.")
        elif field.default_factory is not MISSING:
            found[name] = field.default_factory()
        else:
            found[name] = field.default
    return found


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
