"""config.json's sliding windows, in every spelling, and back."""

from collections.abc import Mapping
from typing import Any

from tpmm_jax.models.config import LIMITS, ModelConfig
from tpmm_jax.models.families import Family, windowed_layers

FULL, SLIDING = "full_attention", "sliding_attention"


def is_count(value: Any, most: int = 2**31 - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


def read_windows(
    hf: Mapping[str, Any], family: Family, problems: list[str]
) -> tuple[int | None, tuple[bool, ...]]:
    """Returns window and windowed_layers; what is wrong goes to problems."""
    num_layers = hf.get("num_hidden_layers")
    if not is_count(num_layers, LIMITS["num_layers"]):
        return None, ()
    window = _window(hf, family, problems)
    windowed = _pattern(hf, family, window, problems)
    layers = hf.get("layer_types")
    if layers is not None:
        if (
            not isinstance(layers, list)
            or len(layers) != num_layers
            or any(x not in (FULL, SLIDING) for x in layers)
        ):
            problems.append(
                f"layer_types = {layers!r}: wanted {num_layers} times {FULL!r} or "
                f"{SLIDING!r}"
            )
            return None, ()
        listed = tuple(x == SLIDING for x in layers)
        if "layer_types" in family.fields:
            windowed = listed
        elif listed != windowed:
            problems.append(f"layer_types = {layers}: in this family all are alike")
    if any(windowed) and window is None:
        problems.append("layers have a window, but sliding_window is null")
    return window, windowed


def _window(hf: Mapping[str, Any], family: Family, problems: list[str]) -> int | None:
    window = hf.get("sliding_window", family.window)
    if window is not None and not is_count(window):
        problems.append(
            f"sliding_window = {window!r}: wanted a positive whole number or null"
        )
        return None
    if "sliding_window" not in family.fields:
        if window is not None and hf.get("use_sliding_window", True):
            problems.append(f"sliding_window = {window}: this family has no windows")
        return None
    if hf.get("sliding_window_size") not in (None, window):
        problems.append(
            f"sliding_window_size = {hf['sliding_window_size']!r} is not "
            f"sliding_window = {window}"
        )
    in_use = family.window_in_use
    if "use_sliding_window" in family.fields:
        given = hf.get("use_sliding_window")
        in_use = in_use if given is None else given
        if not isinstance(in_use, bool):
            problems.append(f"use_sliding_window = {in_use!r}: wanted true or false")
    return window if in_use else None


def _pattern(
    hf: Mapping[str, Any], family: Family, window: int | None, problems: list[str]
) -> tuple[bool, ...]:
    """Returns which layers have the window where layer_types does not say so."""
    num_layers = hf["num_hidden_layers"]
    if "max_window_layers" in family.fields:
        first = hf.get("max_window_layers")
        first = 28 if first is None else first
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            problems.append(f"max_window_layers = {first!r}: wanted a whole number")
            first = 0
        return tuple(
            window is not None and layer >= first for layer in range(num_layers)
        )
    if "sliding_window" not in family.fields:
        return (False,) * num_layers
    every = family.full_every
    if "sliding_window_pattern" in family.fields:
        given = hf.get("sliding_window_pattern")
        every = every if given is None else given
        if not is_count(every):
            problems.append(
                f"sliding_window_pattern = {every!r}: wanted a positive whole number"
            )
            every = 1
        private = hf.get("_sliding_window_pattern")
        if private not in (None, every) and hf.get("layer_types") is None:
            problems.append(
                f"_sliding_window_pattern = {private!r} without layer_types: wanted "
                "sliding_window_pattern"
            )
    # A model of one kind of layers has none where the window is null.
    if every is None and window is None:
        return (False,) * num_layers
    return windowed_layers(num_layers, every)


def write_windows(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Returns config.json's fields of the windows that the family reads."""
    windowed = config.windowed_layers or (False,) * config.num_layers
    content: dict[str, Any] = {
        "sliding_window": config.window,
        "layer_types": [SLIDING if x else FULL for x in windowed],
        "use_sliding_window": any(windowed),
        # Right for every model of before layer_types: those windows come last.
        "max_window_layers": windowed.index(True) if any(windowed) else len(windowed),
    }
    for every in range(1, config.num_layers + 1):
        if windowed == windowed_layers(config.num_layers, every):
            content["sliding_window_pattern"] = every
            break
    return {name: x for name, x in content.items() if name in family.fields}
