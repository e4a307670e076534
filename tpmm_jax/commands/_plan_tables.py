"""How a plan, and a list of meshes, are shown."""

import collections
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from tpmm_jax.chips import GIB
from tpmm_jax.config import Config, RewardConfig
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.table import draw_table
from tpmm_jax.mesh import DATA, TENSOR
from tpmm_jax.models import Decoder
from tpmm_jax.planning.devices import Target
from tpmm_jax.planning.meshes import MeshOption, mesh_text
from tpmm_jax.planning.plan import Plan, PlannedPhase


def plan_tables(
    console: RunConsole, name: str, config: Config | RewardConfig, plan: Plan
) -> None:
    """Prints a plan."""
    size = Decoder(plan.model).num_params / 1e6
    rows = [
        ("model", f"{name}: {plan.model.family}, {size:,.1f} M parameters"),
        (
            "devices",
            f"{len(plan.target.devices)} x {plan.target.kind}, mesh "
            f"{mesh_text(plan.mesh)}, {config.model.compute_dtype}",
        ),
        ("lengths", _lengths(plan)),
        *_drawing(plan),
        *(("note", text) for text in plan.notes),
    ]
    console.header(f"tpmm plan: {plan.target.name}", rows)
    _memory(console, plan)
    _time(console, plan, config)


def _drawing(plan: Plan) -> list[tuple[str, str]]:
    """Returns how the policy lies while it draws, where it is laid out anew."""
    if plan.drawing_mesh in (None, plan.mesh):
        return []
    assert plan.drawing_mesh is not None
    ways = plan.drawing_mesh[TENSOR]
    lies = "whole on every device" if ways == 1 else f"each layer split {ways} ways"
    return [("sampling", f"{lies}, mesh {mesh_text(plan.drawing_mesh)}")]


def _lengths(plan: Plan) -> str:
    pair = f"prompts with answers {plan.lengths.pair} tokens"
    prompts = f"prompts {plan.lengths.prompt}, " if plan.lengths.prompt else ""
    return f"{prompts}{pair}: the longest that the config allows"


def _memory(console: RunConsole, plan: Plan) -> None:
    some = plan.phases
    columns = [("memory, GiB a device", [one.phase.name for one in some])]
    for title, of in (
        ("arguments", lambda one: one.measured.arguments),
        ("temporary", lambda one: one.measured.temporary),
        ("beside", lambda one: one.phase.held),
        ("total", lambda one: one.total),
    ):
        columns.append((title, [_gib(of(one)) for one in some]))
    columns.append(("fits", [_fits(one) for one in some]))
    memory = plan.target.memory
    caption = "" if memory is None else f"of {memory / GIB:.2f} GiB. "
    if plan.target.compiles:
        caption += "Beside: what lies there while the program runs."
    else:
        caption += (
            "By arithmetic: weights, moments, gradients and caches; activations and "
            "logits come on top."
        )
    console.show(draw_table(columns, left=(columns[0][0],), caption=caption))
    console.note("")


def _time(console: RunConsole, plan: Plan, config: Config | RewardConfig) -> None:
    some = plan.phases
    columns: list[tuple[str, list[str]]] = [
        ("time", [one.phase.name for one in some]),
        ("TFLOP", [_number(one.measured.flops / 1e12) for one in some]),
        ("GB", [_number(_moved(one)) for one in some]),
        ("GB sent", [_number(_sent(one)) for one in some]),
    ]
    if plan.target.chip is not None:
        columns += [
            ("ms", [_number(_ms(one.time)) for one in some]),
            ("bound by", [one.bound for one in some]),
            ("calls", [_calls(one, plan.whole) for one in some]),
            ("tokens/s", [_speed(one) for one in some]),
        ]
    caption = (
        "Of a call: operations on all devices; bytes that one device moves in its "
        "memory and sends to others."
    )
    if plan.target.chip is not None:
        caption += " An estimate, at the peak of the chip: real times are longer."
    console.show(draw_table(columns, left=("time", "bound by"), caption=caption))
    console.note("")
    if (seconds := plan.seconds) is not None:
        what = "the run" if isinstance(config, RewardConfig) else "an iteration"
        console.note(
            f"{what} takes {_duration(seconds)} at least, scorers, disk and compiling "
            "not counted"
        )
    elif not plan.whole:
        console.note("--pairs N, of the data, gives calls and the time of all of them")


def plan_json(name: str, plan: Plan, other: Plan | None = None) -> dict[str, Any]:
    """Returns a plan, and one that fits in its place, as JSON has it."""
    found: dict[str, Any] = {
        "model": name,
        "parameters": Decoder(plan.model).num_params,
        "topology": plan.target.name,
        "devices": len(plan.target.devices),
        "device_kind": plan.target.kind,
        "mesh": dict(plan.mesh),
        "drawing_mesh": plan.drawing_mesh,
        "settings": list(plan.settings),
        "notes": list(plan.notes),
        "lengths": asdict(plan.lengths),
        "memory": plan.target.memory,
        "fits": plan.fits,
        "seconds": plan.seconds,
        "phases": [_phase_json(one, plan.whole) for one in plan.phases],
    }
    if plan.fits is False:
        found["suggestion"] = None if other is None else plan_json(name, other)
    return found


def _phase_json(one: PlannedPhase, whole: bool) -> dict[str, Any]:
    traffic = one.measured.traffic
    return {
        "name": one.phase.name,
        "calls": one.phase.calls if whole else None,
        "tokens": one.phase.tokens,
        "arguments": one.measured.arguments,
        "temporary": one.measured.temporary,
        "beside": one.phase.held,
        "total": one.total,
        "fits": one.fits,
        "flops": one.measured.flops,
        "bytes_moved": None if traffic is None else traffic.memory,
        "collectives": None
        if traffic is None
        else {kind: asdict(x) for kind, x in traffic.collectives.items()},
        "seconds": dict(one.seconds),
        "bound": one.bound or None,
    }


def mesh_tables(
    console: RunConsole, name: str, target: Target, options: Sequence[MeshOption]
) -> None:
    """Prints the meshes that suit, best first, and what speaks against others."""
    count = len(target.devices)
    good = [one for one in options if not one.faults]
    plural = "" if len(good) == 1 else "es"
    verb = "suits" if len(good) == 1 else "suit"
    title = f"{name} on {count} x {target.kind}"
    console.note(f"{title}: {len(good) or 'no'} mesh{plural} {verb}")
    console.note("")
    if good:
        _good_meshes(console, good)
    faults = collections.Counter(fault for one in options for fault in one.faults)
    if faults:
        console.note("What speaks against the others:")
    for fault, meshes in faults.items():
        console.note(f"- {fault} ({meshes} mesh{'es' if meshes > 1 else ''})")


def _good_meshes(console: RunConsole, good: Sequence[MeshOption]) -> None:
    axes = [x for x in good[0].shape if any(one.shape[x] > 1 for one in good)] or [DATA]
    columns = [(f"mesh.{x}", [str(one.shape[x]) for one in good]) for x in axes]
    columns.append(("GiB a device", [f"{one.held / GIB:.2f}" for one in good]))
    if good[0].seconds is not None:
        times = [_number(_ms(one.seconds)) for one in good]
        columns.append(("ms a step", times))
    caption = (
        "Best first, by arithmetic: GiB of weights, moments and gradients; a step "
        "takes its products at the chip's peak, or what it sends, whichever is longer. "
        "The other axes are 1."
    )
    console.show(draw_table(columns, left=(), caption=caption))
    console.note("")


def options_json(target: Target, options: Iterable[MeshOption]) -> dict[str, Any]:
    """Returns a list of meshes as JSON has it."""
    meshes = [asdict(one) | {"settings": one.settings} for one in options]
    return {
        "topology": target.name,
        "devices": len(target.devices),
        "device_kind": target.kind,
        "memory": target.memory,
        "meshes": meshes,
    }


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / GIB:.2f}"


def _fits(one: PlannedPhase) -> str:
    return {True: "yes", False: "no", None: "?"}[one.fits]


def _moved(one: PlannedPhase) -> float | None:
    traffic = one.measured.traffic
    return None if traffic is None else traffic.memory / 1e9


def _sent(one: PlannedPhase) -> float | None:
    traffic = one.measured.traffic
    return None if traffic is None else traffic.sent / 1e9


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _calls(one: PlannedPhase, whole: bool) -> str:
    return f"{one.phase.calls:,.0f}" if whole else "?"


def _speed(one: PlannedPhase) -> str:
    if not one.phase.tokens or not one.time:
        return ""
    return f"{one.phase.tokens / one.time:,.0f}"


def _number(value: float | None) -> str:
    """Returns three digits."""
    if value is None:
        return "?"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value else "0"


def _duration(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{_number(seconds)} seconds"
