"""The pairs of a reward run: what trains, what is held out, further test sets."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tpmm_jax.config import HELD_OUT, RewardConfig
from tpmm_jax.data.batches import collate
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.prepare import group_by_prompt, load_rows
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.table import Table, pair_length, round_up
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.prompt_functions import is_function
from tpmm_jax.rewards import import_object
from tpmm_jax.stopping import call_user
from tpmm_jax.store.files import write_text

# Prompts on either side without which nothing can be said of other prompts.
_FEWEST = 2


@dataclass(frozen=True)
class PairSets:
    """Rows by what they are for.

    Attributes:
      train: they train.
      tests: by name; HELD_OUT is the training pairs' own.
      shared: test set -> how many of its pairs have a prompt that trains.
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

    def read(source: str, option: str, name: str) -> list[PairRow]:
        path = _written(config, source, option, workdir / f"{name}.jsonl")
        return fitting(_read(config, path, codec, console), limit, console.warn, source)

    train, held = split(read(str(config.data.pairs), "data.pairs", "pairs"), config)
    tests = {HELD_OUT: held}
    for name, source in config.evaluation.sets.items():
        tests[name] = read(source, f"evaluation.sets.{name}", f"pairs-{name}")
    known = {tuple(row.prompt_ids) for row in train}
    shared = {
        name: sum(tuple(row.prompt_ids) in known for row in rows)
        for name, rows in tests.items()
    }
    for name, count in shared.items():
        if count:
            console.warn(
                f"{name}: {count:,} of {len(tests[name]):,} pairs have a prompt that "
                "trains too; its accuracy says less of new prompts"
            )
    return PairSets(train, tests, shared)


def _written(config: RewardConfig, source: str, option: str, path: pathlib.Path) -> str:
    """Returns the file of a source: of a "module:function", what it returns."""
    if not is_function(source):
        return source
    function = import_object(source, option)
    rows = call_user(
        f"{option} = {source}",
        function,
        timeout=config.data.timeout,
        option="data.timeout",
    )
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
    return str(path)


def _read(
    config: RewardConfig, source: str, codec: TextCodec, console: RunConsole
) -> list[PairRow]:
    data = replace(config.data, pairs=source)
    rows = load_rows(source, data, codec, note=console.note, warn=console.warn)
    if not rows:
        raise BadInput(f"{source} has no pair that can be used; wanted one or more")
    if config.loss.use_margins:
        refuse_missing_margins(source, rows)
    return rows


def refuse_missing_margins(source: str, rows: Sequence[PairRow]) -> None:
    """Raises BadInput for pairs without a margin, where the loss reads it."""
    missing = [row.origin for row in rows if row.margin is None]
    if missing:
        raise BadInput(
            f"loss.use_margins is on, but {len(missing):,} of {len(rows):,} pairs of "
            f"{source} have no margin, the first of them {missing[0]}; give each row "
            "a margin, or leave loss.use_margins off"
        )


def split(
    rows: Sequence[PairRow], config: RewardConfig
) -> tuple[list[PairRow], list[PairRow]]:
    """Returns the rows that train and those held out, no prompt in both.

    Prompts are ordered by a hash of the seed and their tokens, and the first are held
    out: the order of the rows does not matter.

    Raises:
      BadInput: too few prompts.
    """
    fraction = config.evaluation.holdout_fraction
    groups = group_by_prompt(rows)
    count = max(_FEWEST, round(fraction * len(groups)))
    if len(groups) - count < _FEWEST:
        raise BadInput(
            f"{config.data.pairs} has {len(groups)} different prompts, of which "
            f"evaluation.holdout_fraction {fraction:g} holds out {count}: wanted at "
            f"least {_FEWEST} that train and {_FEWEST} that are held out; give pairs "
            "of more prompts"
        )

    def place(group: list[PairRow]) -> bytes:
        text = json.dumps([config.seed, group[0].prompt_ids]).encode()
        return hashlib.blake2b(text, digest_size=16).digest()

    held = {tuple(g[0].prompt_ids) for g in sorted(groups, key=place)[:count]}
    by_side: dict[bool, list[PairRow]] = {False: [], True: []}
    for row in rows:
        by_side[tuple(row.prompt_ids) in held].append(row)
    return by_side[False], by_side[True]


def reward_table(rows: Sequence[PairRow], limit: int, pad_id: int) -> Table:
    """Returns the arrays of pairs that ``losses.reward_loss`` reads.

    Args:
      limit: the model's positions; no row is longer.
    """
    length = round_up(pair_length(rows), limit)
    table = collate(rows, length=length, pad_id=pad_id)
    margins = [0.0 if row.margin is None else row.margin for row in rows]
    kept = {name: table[name] for name in ("tokens_BNT", "mask_BNT", "weight_B")}
    return kept | {"margin_B": np.asarray(margins, np.float32)}


def fitting(
    rows: Sequence[PairRow], limit: int, say: Callable[[str], None], what: str
) -> list[PairRow]:
    """Returns the rows that fit the model; the others are dropped, never cut.

    Raises:
      BadInput: none is left.
    """
    kept = [row for row in rows if pair_length([row]) <= limit]
    if len(kept) < len(rows):
        dropped = len(rows) - len(kept)
        say(f"{what}: {dropped:,} pairs longer than {limit} tokens dropped")
    if not kept:
        raise BadInput(
            f"{what}: every pair is longer than the model's {limit} positions; use a "
            "model with a longer context, or shorter pairs"
        )
    return kept
