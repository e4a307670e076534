"""Fields of nested dataclasses: by dotted name, from a text, checked against types."""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from tpmm_jax.errors import BadInput, nearest

# Services that a run's metrics are sent to.
Tracking = Literal["wandb", "mlflow"]
ReportTo = Tracking | Sequence[Tracking]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {dotted name: value} of nested dataclasses or mappings, in their order.

    A dataclass's field that is a mapping is one value, and so is an empty mapping.
    """
    of_fields = dataclasses.is_dataclass(tree)
    names = [f.name for f in dataclasses.fields(tree)] if of_fields else list(tree)
    flat: dict[str, Any] = {}
    for name in names:
        value = getattr(tree, name) if of_fields else tree[name]
        is_mapping = isinstance(value, Mapping)
        if dataclasses.is_dataclass(value) or (is_mapping and value and not of_fields):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = dict(value) if is_mapping else value
    return flat


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()
) -> list[str]:
    """Returns "name: was x, is now y" of every dotted name but the free ones.

    A field that is new and an empty mapping changes nothing.
    """
    old, new = (
        {name: value for name, value in flatten(tree).items() if value != {}}
        for tree in (before, now)
    )
    return [
        f"{name}: was {old.get(name)!r}, is now {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name) and name not in free
    ]


def set_field(config: Any, override: str) -> Any:
    """Returns ``config`` with one "dotted.name=value" applied, the value typed.

    Raises:
      BadInput: no "=", an unknown name (the nearest are listed), or a value that
        the field's type does not admit.
    """
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals:
        raise BadInput(f"--set {override}: wanted name=value, such as loss.beta=0.2")
    return _set(config, name.split("."), text.strip(), name)


def _set(config: Any, parts: list[str], text: str, name: str) -> Any:
    hints = typing.get_type_hints(type(config))
    names = [f.name for f in dataclasses.fields(config)]
    if parts[0] not in names:
        known = list(flatten(config))
        near = difflib.get_close_matches(".".join(parts), known, n=3, cutoff=0.4)
        deeper = [n for n in known if n.split(".")[-1] == parts[-1]]
        at = name[: len(name) - len(".".join(parts))]
        hint = [at + n for n in dict.fromkeys([*deeper, *near])][:3]
        raise BadInput(
            f"--set {name}: there is no such field"
            + (
                f"; did you mean {', '.join(hint)}?"
                if hint
                else nearest(parts[0], names)
            )
        )
    value, hint = getattr(config, parts[0]), hints[parts[0]]
    if dataclasses.is_dataclass(value):
        if len(parts) == 1:
            inner = [f"{name}.{f.name}" for f in dataclasses.fields(value)]
            raise BadInput(f"--set {name}: name one of its fields: {', '.join(inner)}")
        new = _set(value, parts[1:], text, name)
    elif len(parts) == 1:
        new = parse(text, hint, name)
    elif len(parts) == 2 and isinstance(value, Mapping):
        of_texts = typing.get_args(hint)[1:] == (str,)
        new = {**value, parts[1]: text if of_texts else _any_value(text)}
    else:
        raise BadInput(f"--set {name}: {parts[0]} has no fields of its own")
    return dataclasses.replace(config, **{parts[0]: new})


def _any_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse(text: str, hint: Any, name: str) -> Any:
    """Returns ``text`` as a value of type ``hint``."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    wanted = describe(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in args and text.lower() in ("none", "null"):
            return None
        lists = [a for a in args if typing.get_origin(a) is Sequence]
        others = [a for a in args if a not in (type(None), *lists)]
        listed = lists and (not others or text.startswith("["))
        return parse(text, (lists if listed else others)[0], name)
    if origin is Literal:
        if text in args:
            return text
        raise BadInput(f"--set {name}={text}: wanted {wanted}{nearest(text, args)}")
    if hint is str:
        return text
    try:
        if hint is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if hint in (int, float):
            return hint(text.replace("_", ""))
        value = json.loads(text)
    except (ValueError, KeyError):
        raise BadInput(f"--set {name}={text}: wanted {wanted}") from None
    if not fits(value, hint):
        raise BadInput(f"--set {name}={text}: wanted {wanted}")
    return tuple(value) if origin is Sequence else value


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "none",
}


def describe(hint: Any) -> str:
    """Returns a type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is Sequence:
        named = {str: "texts", float: "numbers", Tracking: "these"}
        return "a list of " + named.get(args[0], "values")
    if origin is not None:
        return "a JSON object" + (" of texts" if args[1:] == (str,) else "")
    return _WORDS.get(hint, str(hint))


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; an int is a float too, a bool is not."""
    if hint is Any:
        return True
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is Literal:
        return value in args
    if origin is Sequence:
        return isinstance(value, (tuple, list)) and all(fits(v, args[0]) for v in value)
    if origin is not None:
        return isinstance(value, origin) and all(
            fits(v, args[1]) for v in value.values()
        )
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def check_types(config: Any, prefix: str = "") -> None:
    """Raises BadInput for the first field of another type, or that holds inf or nan."""
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), prefix + f.name
        if not fits(value, hints[f.name]):
            raise BadInput(
                f"{name} is {value!r} ({type(value).__name__}); wanted "
                f"{describe(hints[f.name])}"
            )
        _check_finite(value, name)
        if dataclasses.is_dataclass(value):
            check_types(value, f"{name}.")


def _check_finite(value: Any, name: str) -> None:
    """Raises BadInput for inf or nan, inside an object or a list too."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{name} is {value}; wanted a finite number")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_finite(inner, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            _check_finite(inner, f"{name}[{i}]")
