"""Writes docs/fields.md, a table of every field of a configuration.

    JAX_PLATFORMS=cpu python benchmarks/fields.py

Names, defaults and types are those of the dataclasses, and what a field means is the
entry of its class's docstring.
"""

import dataclasses
import inspect
import pathlib
import re
import typing
from collections.abc import Iterator

from tpmm_jax.config import Config, RewardConfig
from tpmm_jax.config.fields import describe

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "fields.md"
INTRODUCTION = """\
# Fields

Every field that a config file or `--set` may name, with its default; "required" has
none. What losses and rules read, and where they come from, is in [losses](losses.md).
"""
OF = {
    Config: "A run of tpmm train",
    RewardConfig: "A run of tpmm train_reward",
}
ENTRY = re.compile(r"^  (\w+(?:, \w+)*): (.*(?:\n(?:    .*)?)*)", re.MULTILINE)


def meanings(kind: type) -> dict[str, str]:
    """Returns what the docstrings of a class and its bases say of their fields."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for names, meaning in ENTRY.findall(text):
            found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found


def sections(kind: type, name: str = "") -> Iterator[tuple[str, type]]:
    """Yields the dotted name and class of each part of a configuration."""
    yield name, kind
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(inner := hints[field.name]):
            yield from sections(inner, f"{name}{field.name}.")


def row(kind: type, field: dataclasses.Field, name: str, told: str) -> str:
    default = "required"
    if field.default is not dataclasses.MISSING:
        default = f"`{field.default!r}`"
    elif field.default_factory is not dataclasses.MISSING:
        default = f"`{field.default_factory()!r}`"
    wanted = describe(typing.get_type_hints(kind)[field.name])
    cells = [f"`{name}`", default, wanted, told.replace("``", "`")]
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def table(kind: type, prefix: str) -> list[str]:
    told, hints = meanings(kind), typing.get_type_hints(kind)
    rows = [
        row(kind, field, prefix + field.name, told[field.name])
        for field in dataclasses.fields(kind)
        if not dataclasses.is_dataclass(hints[field.name])
    ]
    head = ["| field | default | wanted | |", "|---|---|---|---|"] if rows else []
    return head + rows


def page() -> str:
    """Returns the text of docs/fields.md."""
    lines = [INTRODUCTION]
    shown: set[type] = set()
    for config, title in OF.items():
        lines += [f"## {title}", ""]
        for prefix, kind in sections(config):
            if prefix:
                lines += [f"### {prefix.removesuffix('.')}", ""]
            again = ["The fields above of this name."] if kind in shown else []
            lines += [*(again or table(kind, prefix)), ""]
            shown.add(kind)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
