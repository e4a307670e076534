"""The resolved configuration, beside the defaults or beside other runs'."""

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpmm_jax.config import Config
from tpmm_jax.report.gather import RunData

_ABSENT = object()


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


def settings(run: RunData) -> list[Setting]:
    """Returns every field of config.json with its default."""
    defaults = default_values(Config)
    found = []
    for name, value in flat(run.config).items():
        default = defaults.get(name, _ABSENT)
        if default is _ABSENT:
            text, changed = _without_default(name), True
        else:
            text, changed = _text(default), _text(default) != _text(value)
        found.append(Setting(name, _text(value), text, changed))
    return found


def differences(runs: Sequence[RunData]) -> list[tuple[str, list[str]]]:
    """Returns (field, a value a run) where the runs' configurations differ.

    A run without the field, older than it, has "–".
    """
    flats = [flat(run.config) for run in runs]
    names = dict.fromkeys(name for values in flats for name in values)
    found = []
    for name in names:
        texts = [_text(values[name]) if name in values else "–" for values in flats]
        if len(set(texts)) > 1:
            found.append((name, texts))
    return found


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {dotted name: value}; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def default_values(cls: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {dotted name: default} of a dataclass; fields without one are absent."""
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name, kind = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(kind):
            found |= default_values(kind, f"{name}.")
        elif field.default is not dataclasses.MISSING:
            found[name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[name] = field.default_factory()
    return found


def _without_default(name: str) -> str:
    """Tells a field without a default from one that this version does not know."""
    cls: Any = Config
    for part in name.split("."):
        if not dataclasses.is_dataclass(cls):
            return ""  # an entry of a mapping, such as scorer.options
        hints = typing.get_type_hints(cls)
        if part not in hints:
            return "unknown"
        cls = hints[part]
    return ""


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
