"""tpmm check_data --config: what a run of tpmm train_reward reads, before it."""

import argparse
import contextlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from tpmm_jax.commands._data_table import rows_view, some_rows
from tpmm_jax.commands._line import flag
from tpmm_jax.config import HELD_OUT, RewardConfig
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.table import pair_length
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.reward_runs.plan import RewardPlan
from tpmm_jax.reward_runs.setup import prepare

# Options that say nothing of how rows are read.
_OF_OUTPUT = ("config", "overrides", "show", "line", "json")


def check_reward_run(
    args: argparse.Namespace,
    usual: argparse.Namespace,
    config: RewardConfig,
    console: RunConsole,
) -> int:
    """Reads, splits and encodes all that a run of a config reads; returns 0.

    Args:
      usual: the options' defaults.

    Raises:
      BadInput: what the run would refuse, all bad rows listed; or an option that a
        field of the config stands for.
    """
    _refuse_options(args, usual)
    # What a function prints is no part of the output of --json.
    with (
        contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout),
        tempfile.TemporaryDirectory() as folder,
    ):
        plan, _ = prepare(config, pathlib.Path(folder), console, started=False)
    sets = {"train": plan.sets.train, **plan.sets.tests}
    facts = {name: _facts(plan, name, rows) for name, rows in sets.items()}
    if args.json:
        print(json.dumps({"sets": facts, "steps": plan.order.steps}))
    else:
        _show(args, plan, facts, console)
    return 0


def _refuse_options(args: argparse.Namespace, usual: argparse.Namespace) -> None:
    for name, value in vars(usual).items():
        if name not in _OF_OUTPUT and getattr(args, name) != value:
            option = "FILE" if name == "files" else flag(name)
            raise BadInput(
                f"{option} is not for a reward model's config, which says itself what "
                "is read and how; change a field of it with --set"
            )
    if args.show < 0 or any(line < 0 for line in args.line):
        raise BadInput("--show and --line take numbers of 0 or more")


def _facts(plan: RewardPlan, name: str, rows: Sequence[PairRow]) -> dict[str, Any]:
    found = {"pairs": len(rows), "prompts": len({row.group for row in rows})}
    found["longest"] = pair_length(rows)
    if name in plan.sets.shared:
        found["shared"] = plan.sets.shared[name]
    return found


def _show(
    args: argparse.Namespace,
    plan: RewardPlan,
    facts: Mapping[str, Mapping[str, Any]],
    console: RunConsole,
) -> None:
    limit = plan.decoder.config.max_positions
    rows = [("data", f"{plan.config.data.kind} of {plan.config.data.source}")]
    for name, found in facts.items():
        text = f"{found['pairs']:,} pairs of {found['prompts']:,} prompts or groups, "
        text += f"the longest row {found['longest']:,} of {limit:,} tokens"
        if shared := found.get("shared"):
            text += f"; {shared:,} with a prompt or text that trains"
        rows.append(("held out" if name == HELD_OUT else name, text))
    rows.append(("steps", f"{plan.order.steps:,}"))
    console.header("tpmm check_data: what a reward run reads", rows)
    every = list(plan.sets.train)
    if args.line:
        every += [row for some in plan.sets.tests.values() for row in some]
    some = some_rows(every, args.line, args.show)
    if some:
        console.show(rows_view(plan.codec.tokenizer, some, whole=bool(args.line)))
    elif args.line:
        lines = ", ".join(map(str, args.line))
        console.note(f"no pair is used of --line {lines}")
