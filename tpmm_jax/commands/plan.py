"""Plans a run: tpmm plan --config configs/gemma2b.py --topology v5e:4x4

Compiles every program of a config without running it, also for a TPU slice from a
machine without one. Exit codes: 0 nothing says that it does not fit, 5 it does
not, 1 other, 2 bad input.
"""

import argparse
import contextlib
import functools
import json
from collections.abc import Sequence

from tpmm_jax.commands._line import check_least, guarded
from tpmm_jax.commands._plan_tables import (
    mesh_tables,
    options_json,
    plan_json,
    plan_tables,
)
from tpmm_jax.commands.options.plan import parse_args
from tpmm_jax.compiling import user_cache
from tpmm_jax.config import Config, RewardConfig, load_config
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import Phase, RunConsole
from tpmm_jax.models import ModelConfig
from tpmm_jax.planning.devices import Target, find_target
from tpmm_jax.planning.plan import (
    Plan,
    make_plan,
    options_for,
    planned_model,
    suggest,
)
from tpmm_jax.planning.sizes import find_sizes

# The exit code.
DOES_NOT_FIT = 5


def plan(args: argparse.Namespace, console: RunConsole) -> int:
    """Prints what a command line asks for; returns its exit code."""
    check_least(args, {"pairs": 1})
    config = load_config(args.config, args.overrides, kind=None)
    if args.pairs and isinstance(config, Config) and not config.offline:
        raise BadInput(
            "--pairs says how many pairs the data holds, and this config samples its "
            "own: rollout.prompts_per_iteration says how many"
        )
    # Before a model's files are read, for which JAX may start.
    target = find_target(args.topology, compiles=not args.mesh)
    if args.model:
        found = find_sizes(args.model, "--model")
    else:
        found = find_sizes(config.model.source, "model.source", config.model.base)
    model = planned_model(config, found)
    name = args.model or config.model.source
    if args.mesh:
        options = options_for(config, model, target)
        if args.json:
            print(json.dumps(options_json(target, options), indent=2))
        else:
            mesh_tables(console, name, target, options)
        return 0
    planned = _plan(config, model, target, args.pairs, console)
    other = None
    if planned.fits is False:
        if not args.json:
            plan_tables(console, name, config, planned)
        other = _suggestion(config, model, target, planned, args.pairs, console)
    if args.json:
        print(json.dumps(plan_json(name, planned, other), indent=2))
    else:
        _say(console, name, config, planned, other)
    return DOES_NOT_FIT if planned.fits is False else 0


def _say(
    console: RunConsole,
    name: str,
    config: Config | RewardConfig,
    planned: Plan,
    other: Plan | None,
) -> None:
    if planned.fits is not False:
        plan_tables(console, name, config, planned)
    elif other is None:
        console.note("nothing was found that fits; it takes more devices")
    else:
        words = " ".join(f"--set {setting}" for setting in other.settings)
        console.note(f"it fits with: {words}")
        plan_tables(console, name, config, other)


def _plan(
    config: Config | RewardConfig,
    model: ModelConfig,
    target: Target,
    pairs: int | None,
    console: RunConsole,
) -> Plan:
    with contextlib.ExitStack() as stack:

        @functools.cache
        def bar(total: int) -> Phase:
            verb = "compile" if target.compiles else "count"
            return stack.enter_context(console.phase(verb, total, "programs"))

        def on_phase(name: str, done: int, total: int) -> None:
            bar(total).advance(done > 0, program=name)

        found = make_plan(
            config,
            model,
            target,
            pairs=pairs,
            cache=user_cache("plans"),
            on_phase=on_phase,
        )
        bar(len(found.phases)).advance(1)
    return found


def _suggestion(
    config: Config | RewardConfig,
    model: ModelConfig,
    target: Target,
    planned: Plan,
    pairs: int | None,
    console: RunConsole,
) -> Plan | None:
    def on_try(settings: Sequence[str]) -> None:
        console.note(f"it does not fit; trying {' '.join(settings)}")

    return suggest(
        config,
        model,
        target,
        planned,
        pairs=pairs,
        cache=user_cache("plans"),
        on_try=on_try,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    args = parse_args(argv)
    return guarded(plan, args, result_alone=args.json)
