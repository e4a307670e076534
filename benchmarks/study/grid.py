"""A study's grid: axes of config changes, and the cells of their product."""

import itertools
import json
import pathlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tpmm_jax.config import Config, RewardConfig, load_config
from tpmm_jax.errors import BadInput

SEED = "seed"


@dataclass(frozen=True)
class Cell:
    """One run of the study.

    Attributes:
      levels: axis -> level, both as text, in the order of the grid file.
      overrides: "name=value" of the config, as after --set.
    """

    levels: Mapping[str, str]
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its folder's name."""
        return "-".join(f"{axis}_{level}" for axis, level in self.levels.items())


@dataclass(frozen=True)
class Grid:
    """What is studied, and how it is shown.

    Attributes:
      config: the config file that every cell starts from.
      axes: axis -> level -> {field: value}.
      fixed: {field: value} of every cell.
      lines: the axis whose levels are compared, one line each in a figure.
      panels: the axis whose levels get a figure's panel and a table each.
      baseline: the level of ``lines`` that the others are compared with.
    """

    config: pathlib.Path
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]]
    fixed: Mapping[str, Any]
    lines: str
    panels: str
    baseline: str

    def cells(self) -> list[Cell]:
        """Returns the product of all axes, the last axis fastest."""
        found = []
        for levels in itertools.product(*self.axes.values()):
            named = dict(zip(self.axes, levels))
            fields = dict(self.fixed)
            for axis, level in named.items():
                fields |= self.axes[axis][level]
            found.append(
                Cell(named, tuple(f"{k}={_text(v)}" for k, v in fields.items()))
            )
        return found

    def load(self, cell: Cell) -> Config | RewardConfig:
        """Returns a cell's configuration."""
        return load_config(self.config, cell.overrides)


def read_grid(path: pathlib.Path) -> Grid:
    """Reads a grid file (TOML); see rules.toml for its form.

    Raises:
      BadInput: names the file and the entry, what was wanted.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid TOML: {error}") from None
    entries = {
        "config": str, "axes": dict, "fixed": dict,
        "lines": str, "panels": str, "baseline": str,
    }  # fmt: skip
    if unknown := sorted(set(content) - set(entries)):
        raise BadInput(f"{path}: {unknown[0]!r} is none of {', '.join(entries)}")
    for name, kind in entries.items():
        if not isinstance(content.get(name), kind):
            raise BadInput(
                f"{path}: {name} is {content.get(name)!r}; wanted a "
                f"{'text' if kind is str else 'table'}"
            )
    axes = {name: _levels(path, name, axis) for name, axis in content["axes"].items()}
    for role in ("lines", "panels"):
        if content[role] not in axes:
            raise BadInput(f"{path}: {role} is {content[role]!r}; wanted an axis")
    wanted = {content["lines"], content["panels"], SEED}
    if set(axes) != wanted or len(wanted) != 3:
        raise BadInput(
            f"{path}: the axes are {', '.join(axes)}; wanted three: those of lines and "
            f"panels, and {SEED}. Several fields may change together in one level"
        )
    if content["baseline"] not in axes[content["lines"]]:
        raise BadInput(
            f"{path}: baseline is {content['baseline']!r}; wanted a level of "
            f"{content['lines']}: {', '.join(axes[content['lines']])}"
        )
    config = path.parent / content["config"]
    return Grid(
        config, axes, content["fixed"], *(content[n] for n in list(entries)[3:])
    )


def _levels(path: pathlib.Path, name: str, axis: Any) -> dict[str, dict[str, Any]]:
    """An axis is {field, values} or {level: {field: value, ...}, ...}."""
    if isinstance(axis, dict) and set(axis) == {"field", "values"}:
        return {_text(value): {axis["field"]: value} for value in axis["values"]}
    if (
        isinstance(axis, dict)
        and axis
        and all(isinstance(v, dict) for v in axis.values())
    ):
        return axis
    raise BadInput(
        f"{path}: axes.{name} is {axis!r}; wanted field and values, or a table of "
        "levels, each a table of config fields"
    )


def _text(value: Any) -> str:
    """A value as --set takes it."""
    return value if isinstance(value, str) else json.dumps(value)
