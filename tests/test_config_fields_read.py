"""No option is accepted and ignored: every field of Config is read somewhere."""

import ast
import dataclasses
import pathlib
import typing

import pytest

from tpmm_jax.config import Config, RewardConfig

PACKAGE = pathlib.Path(__file__).parents[1] / "tpmm_jax"

# What a section is called where it is handed on by itself.
ALIASES = {"rollout": ("sampling",), "loss": ("objective",)}


def fields(cls=Config, prefix=""):
    """(dotted name, classes that define the field, section) of every leaf."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from fields(hint, f"{prefix}{field.name}.")
        else:
            owners = [c.__name__ for c in cls.__mro__ if dataclasses.is_dataclass(c)]
            yield f"{prefix}{field.name}", owners


def terminal(node):
    """The last name of "a.b.c", the name a value goes by."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def reads():
    """(the value's name, attribute, enclosing class) of every attribute read."""
    found = set()

    def walk(node, owner):
        if isinstance(node, ast.ClassDef):
            owner = node.name
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add((terminal(node.value), node.attr, owner))
        # A field by its name: objective.get("ld_alpha").
        if isinstance(node, ast.Call) and terminal(node.func) == "get":
            found.update(
                (terminal(node.func.value), argument.value, owner)
                for argument in node.args
                if isinstance(argument, ast.Constant)
            )
        for child in ast.iter_child_nodes(node):
            walk(child, owner)

    for path in PACKAGE.rglob("*.py"):
        walk(ast.parse(path.read_text(encoding="utf-8")), None)
    return found


READS = reads()


@pytest.mark.parametrize("name, owners", [*fields(), *fields(RewardConfig)], ids=str)
def test_the_field_is_read_outside_its_own_class(name, owners):
    *section, leaf = name.split(".")
    called = {"config", *section}
    for part in section:
        called |= set(ALIASES.get(part, ()))
    assert any(
        value in called
        and attribute == leaf
        and owner not in {*owners} - {"Config", "RewardConfig"}
        for value, attribute, owner in READS
    ), f"{name} is never read"
