"""The pairs of a reward run: what trains, what is held out, further test sets."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tpmm_jax.config import HELD_OUT, RewardConfig
from tpmm_jax.data.batches import collate
from tpmm_jax.data.checks import units_of
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.data.reward_kinds import find_kind
from tpmm_jax.data.reward_pairs import fitting, load_reward_pairs
from tpmm_jax.data.table import Table, pair_length, round_up
from tpmm_jax.errors import BadInput
from tpmm_jax.hosts import once
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.prompt_functions import is_function
from tpmm_jax.rewards import import_object
from tpmm_jax.stopping import call_user
from tpmm_jax.store.files import write_text
from tpmm_jax.store.rollouts import read_rollouts

# Prompts on either side without which nothing can be said of other prompts.
_FEWEST = 2


@dataclass(frozen=True)
class PairSets:
    """Rows by what they are for.

    Attributes:
      train: they train.
      tests: by name; HELD_OUT is the training pairs' own.
      shared: test set -> how many of its pairs have a prompt that trains, or, without
        prompts, a text.
    """

    train: list[PairRow]
    tests: dict[str, list[PairRow]]
    shared: dict[str, int]

    def digest(self) -> str:
        """Returns what pins the pairs, their margins and their split."""
        rows = {
            name: [[x.prompt_ids, x.chosen_ids, x.rejected_ids, x.margin] for x in some]
            for name, some in {"": self.train, **self.tests}.items()
        }
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def load_sets(
    config: RewardConfig,
    codec: TextCodec,
    limit: int,
    workdir: pathlib.Path,
    console: RunConsole,
) -> PairSets:
    """Reads and splits every set of pairs.

    Args:
      workdir: what a "module:function" returns is written there.
      limit: the model's positions.

    Raises:
      BadInput: rows that cannot be used, or too few.
    """

    data, fraction = config.data, config.evaluation.holdout_fraction
    option, path = f"data.{data.kind}", workdir / "pairs.jsonl"
    made = _written(data.source, option, path, data.timeout)
    margins = config.loss.use_margins
    train, held = _load(config, data.at(made), codec, console, fraction, margins)
    tests = {HELD_OUT: held}
    for name, source in config.evaluation.sets.items():
        option, path = f"evaluation.sets.{name}", workdir / f"pairs-{name}.jsonl"
        made = _written(source, option, path, data.timeout)
        of_set = data.at(made, find_kind(made, data))
        # No measure reads margins.
        tests[name] = _load(config, of_set, codec, console, 0.0, margins=False)[0]
    refuse_few(data.source, train, held)
    train = fitting(train, limit, console.warn, data.source)
    tests = {n: fitting(rows, limit, console.warn, n) for n, rows in tests.items()}
    shared = _count_shared(train, tests, console)
    return PairSets(train, tests, shared)


def _count_shared(
    train: Sequence[PairRow],
    tests: Mapping[str, Sequence[PairRow]],
    console: RunConsole,
) -> dict[str, int]:
    """Returns, of each test set, the pairs with a prompt or text that trains; warns."""
    known = set[str]().union(*map(units_of, train))
    shared = {
        name: sum(not known.isdisjoint(units_of(row)) for row in rows)
        for name, rows in tests.items()
    }
    for name, count in shared.items():
        if count:
            alone = any(x.pair is not None and not x.pair.prompt for x in tests[name])
            what = "text" if alone else "prompt"
            console.warn(
                f"{name}: {count:,} of {len(tests[name]):,} pairs have a {what} that "
                f"trains too; its accuracy says less of new {what}s"
            )
    return shared


def _written(
    source: str, option: str, path: pathlib.Path, timeout: float | None
) -> str:
    """Returns the file of a source: of a "module:function", what it returns."""
    if not is_function(source):
        return source
    once(lambda: _write_rows(source, option, path, timeout), f"pairs of {source}")
    return str(path)


def _write_rows(
    source: str, option: str, path: pathlib.Path, timeout: float | None
) -> None:
    """Writes what a function of pairs returns, as lines of JSON."""
    function = import_object(source, option)
    what = f"{option} = {source}"
    rows = call_user(what, function, timeout=timeout, option="data.timeout")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadInput(
            f"{option} = {source} returned a {type(rows).__name__}; wanted a list of "
            "dicts, each with prompt, chosen and rejected"
        )
    try:
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"{option} = {source}: a row that JSON cannot say ({error}); use texts and "
            "finite numbers"
        ) from None
    write_text(path, text)


def _load(
    config: RewardConfig,
    data: RewardDataConfig,
    codec: TextCodec,
    console: RunConsole,
    fraction: float,
    margins: bool,
) -> tuple[list[PairRow], list[PairRow]]:
    """Returns the rows of a source that train, and those held out."""
    rollouts = data.kind == "rollouts"
    return load_reward_pairs(
        data,
        codec,
        seed=config.seed,
        holdout_fraction=fraction,
        margins=margins,
        answers=read_rollouts(data.source) if rollouts else None,
        note=console.note,
        warn=console.warn,
    )


def refuse_few(source: str, train: Sequence[PairRow], held: Sequence[PairRow]) -> None:
    """Raises BadInput where nothing trains, or nothing can be said of other prompts."""
    for what, rows in (("train", train), ("are held out", held)):
        if len({row.group for row in rows}) < _FEWEST:
            raise BadInput(
                f"{source}: {len(rows)} pairs of fewer than {_FEWEST} prompts {what} "
                "(evaluation.holdout_fraction decides by prompt); give pairs of more "
                "prompts, or another fraction"
            )


def reward_table(rows: Sequence[PairRow], limit: int, pad_id: int) -> Table:
    """Returns the arrays of pairs that ``losses.reward_loss`` reads.

    Args:
      limit: the model's positions; no row is longer.
    """
    length = round_up(pair_length(rows), limit)
    table = collate(rows, length=length, pad_id=pad_id, whole=True)
    margins = [0.0 if row.margin is None else row.margin for row in rows]
    kept = {name: table[name] for name in ("tokens_BNT", "mask_BNT", "weight_B")}
    return kept | {"margin_B": np.asarray(margins, np.float32)}
