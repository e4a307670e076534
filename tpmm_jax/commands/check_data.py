"""Checks data before training: tpmm check_data pairs.jsonl --model MODEL

Exit codes: 0 nothing is wrong, 2 training on it would be wrong, or bad input.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from tpmm_jax.commands._data_checks import (
    Checked,
    check_labels,
    check_leaks,
    check_pairs,
    check_prompts,
    summary,
)
from tpmm_jax.commands._data_margins import (
    check_ratings,
    margin_facts,
    margin_line,
)
from tpmm_jax.commands._data_reward_run import check_reward_run
from tpmm_jax.commands._data_rewards import check_reward
from tpmm_jax.commands._data_run import (
    as_run,
    check_run,
    find_codec,
    find_scorer,
    read_evaluation,
)
from tpmm_jax.commands._data_table import (
    data_table,
    prompts_view,
    rows_view,
    some_rows,
)
from tpmm_jax.commands._line import (
    check_least,
    escape_unprintable,
    flag,
    guarded,
    timeout_of,
)
from tpmm_jax.commands._rows import row_options
from tpmm_jax.commands.options.check_data import parse_args
from tpmm_jax.config import Config, RewardConfig, load_config
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.prepare import unread_text
from tpmm_jax.data.problems import SHOWN, listing
from tpmm_jax.data.prompts import Prompt
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.errors import BadInput, TpmmError
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.prompt_functions import prompt_file

# How the reader says that a row has no answers.
NO_CHOSEN = "field 'chosen' is missing"


def read_config(args: argparse.Namespace) -> Config | RewardConfig | None:
    """Returns the config if one is given."""
    if args.overrides and args.config is None:
        raise BadInput("--set changes a field of --config; give that too")
    if args.config is None:
        return None
    return load_config(args.config, args.overrides, kind=None)


def read_settings(
    args: argparse.Namespace, config: Config | None
) -> tuple[DataConfig, list[str]]:
    """Returns how data are read, and the files.

    Raises:
      BadInput: options that do not belong together or are out of range.
    """
    data = DataConfig() if config is None else config.data
    names = (
        *("split", "chat", "prompt_field", "truncate_prompt"),
        *("max_prompt_length", "max_completion_length"),
    )
    given = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    given |= row_options(args, pairs=not args.prompts, ratings=args.ratings)
    given["timeout"] = timeout_of(args, data.timeout)
    data = dataclasses.replace(data, **given)
    files = list(args.files)
    if not files:
        source = data.pairs if data.pairs is not None else data.prompts
        if source is None:
            raise BadInput("nothing to check: give FILE, or --config of a run")
        if args.prompts:
            raise BadInput("--prompts says what FILE holds; give FILE")
        files, args.prompts = [source], data.pairs is None
    for name in ("max_prompt_length", "max_completion_length"):
        if getattr(data, name) < 1:
            raise BadInput(f"{name} is {getattr(data, name)}; use at least 1 token")
    if args.ratings and (config is not None or args.prompts):
        raise BadInput("--ratings says what FILE holds: without --config and --prompts")
    if args.show < 0 or any(line < 0 for line in args.line):
        raise BadInput("--show and --line take numbers of 0 or more")
    refuse_ignored(args, data)
    return data, files


def refuse_ignored(args: argparse.Namespace, data: DataConfig) -> None:
    """Refuses options that would change nothing, and says what to use instead."""
    if args.prompts:
        instead = {
            "reward": "reads the answers of pairs; prompts have none",
            "scorer": "is compared with the labels of pairs; prompts have none",
            "max_completion_length": "applies to pairs; prompts have no completions",
        }
    else:
        instead = {}
        if not args.eval and data.eval_prompts is None:
            text = "is the column of prompts; that of pairs is --fields prompt=COLUMN"
            instead["prompt_field"] = text
    if args.ratings:
        # Nothing of a reward model's rows is cut.
        text = "cuts prompts and completions; ratings have --max-length"
        names = ("max_prompt_length", "max_completion_length", "truncate_prompt")
        instead |= dict.fromkeys(names, text)
        instead["implicit_prompt"] = "concerns pairs; ratings have none"
    else:
        text = "concerns ratings: give --ratings"
        instead |= dict.fromkeys(("columns", "max_length"), text)
    if args.model is None and args.config is None:
        names = ("chat", "max_prompt_length", "max_completion_length")
        text = "concerns tokens, which need a tokenizer: give --model"
        more = ("truncate_prompt", "line", "max_length")
        instead |= dict.fromkeys((*names, *more), text)
    for name, text in instead.items():
        if getattr(args, name) not in (None, []):
            raise BadInput(f"{flag(name)} {text}")


def ratings_of(
    args: argparse.Namespace, data: DataConfig, files: list[str]
) -> RewardDataConfig:
    """Returns how the files' ratings are read.

    Raises:
      BadInput: options that do not belong together or are out of range.
    """
    ratings = RewardDataConfig(
        ratings=files[0],
        fields=data.fields,
        columns=() if args.columns is None else args.columns.split(","),
        parse_json=data.parse_json,
        ignore_columns=data.ignore_columns,
        split=data.split,
        chat=data.chat,
        scored_pairs=args.scored_pairs or RewardDataConfig.scored_pairs,
        max_length=args.max_length or RewardDataConfig.max_length,
    )
    ratings.validate()
    return ratings


def choose_rows(args: argparse.Namespace, found: Checked) -> list[Any]:
    """Returns the rows to print: those of --line, or from all over the set."""
    rows: Sequence[Any] = found.encoded_prompts if args.prompts else found.encoded
    return some_rows(rows, args.line, args.show)


def check(args: argparse.Namespace, console: RunConsole) -> int:
    """Runs one command line."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    least = {"max_prompt_length": 1, "max_completion_length": 1, "max_length": 2}
    check_least(args, least | {"show": 0})
    # A scorer or a config may print; with --json that is not part of the output.
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
        config = read_config(args)
    if isinstance(config, RewardConfig):
        usual = parse_args(["--config", args.config])
        return check_reward_run(args, usual, config, console)
    failed = None
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
        data, files = read_settings(args, config)
        scorer = None if args.prompts else find_scorer(args, config, console)
        found, codec = check_files(args, config, data, files, console)
        if not args.prompts:
            try:
                check_labels(scorer, found)
            except TpmmError as error:
                failed = error
    found.counts["refused_whole"] = sum(defect.fatal for defect in found.errors)
    if args.json:
        # Escaped, so that any encoding of the output will do.
        margins = margin_facts(found.margins)
        print(json.dumps(summary(found) | {"margins": margins}))
    else:
        show(args, files, data, found, codec, console)
    if failed is not None:
        console.error(f"the labels were not compared: {failed}")
        return failed.exit_code
    return BadInput.exit_code if found.errors else 0


def check_files(
    args: argparse.Namespace,
    config: Config | None,
    data: DataConfig,
    files: list[str],
    console: RunConsole,
) -> tuple[Checked, TextCodec | None]:
    """Returns what was found, scorers aside, and how it was encoded."""
    ratings = ratings_of(args, data, files) if args.ratings else None
    reading = data if ratings is None else ratings.reading()
    codec, limit = find_codec(args.model, config, reading, console, reward=args.ratings)
    run = as_run(config, data, files, prompts=args.prompts)
    auto_chat = args.chat is None and config is None
    evaluation: dict[str, list[Prompt]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)

        def held_by(files: list[str], option: str) -> list[tuple[str, DataConfig]]:
            caches = [folder / f"{file}.jsonl" for file in files]
            return [prompt_file(f, option, data, c) for f, c in zip(files, caches)]

        if args.prompts:
            read = held_by(files, "FILE")
            found = check_prompts(read, codec, auto_chat=auto_chat)
        elif ratings is not None:
            found = check_ratings(files, ratings, codec)
        else:
            found = check_pairs(files, data, codec, auto_chat=auto_chat)
            check_reward(args.reward, files, data, found, auto_chat=auto_chat)
        if config is not None:
            own = config if run is None else run
            evaluation = read_evaluation(own, codec, folder, found)
        some = [prompt for prompts in evaluation.values() for prompt in prompts]
        held = held_by(args.eval, "--eval")
        check_leaks(held, found, some if evaluation else None, auto_chat=auto_chat)
    if run is not None and codec is not None and not found.refused:
        check_run(run, codec, limit, evaluation, found)
    elif config is not None and not found.refused:
        needs = "--model" if codec is None else "a FILE like the config's"
        found.skipped.append(("counts and lengths as of a run", needs))
    return found, codec


def show(
    args: argparse.Namespace,
    files: list[str],
    data: DataConfig,
    found: Checked,
    codec: TextCodec | None,
    console: RunConsole,
) -> None:
    """Prints the table, some rows, and what is wrong."""
    rows = [("files", ", ".join(files))]
    if codec is not None:
        rows += [("tokens", tokens_text(args, data, chat=found.chat))]
    console.header(f"tpmm check_data: {found.rows:,} rows", rows)
    console.show(data_table(found, data.on_bad_rows == "drop"))
    if margins := margin_facts(found.margins):
        console.note(margin_line(margins))
    for file, columns in found.unread.items():
        console.note(unread_text(file, columns))
    some = choose_rows(args, found)
    if codec is not None and some:
        console.note("")
        view = prompts_view if args.prompts else rows_view
        console.show(view(codec.tokenizer, some, whole=bool(args.line)))
    elif args.line and codec is None:
        console.note("\nno tokens to show for --line: give --model")
    elif args.line:
        what = "prompt that can be used" if args.prompts else "pair that trains"
        lines = ", ".join(map(str, args.line))
        console.note(f"\nthere is no {what} on --line {lines}")
    console.note("")
    for remark in found.remarks:
        # Shown, not noted, so that it keeps to the terminal's width.
        console.show(Text(f"note: {remark}"))
    if found.errors:
        console.error(verdict(found, drops=data.on_bad_rows == "drop"))
    elif not found.remarks:
        console.note("nothing is wrong with these rows")


def tokens_text(args: argparse.Namespace, data: DataConfig, *, chat: bool) -> str:
    """Returns whose tokens they are, how rows are written, and how they are cut."""
    template = "chat template" if chat else "texts to the letter"
    text = f"{args.model or 'of the config'}, {template}; "
    if args.ratings:
        most = args.max_length or RewardDataConfig.max_length
        return f"{text}rows longer than {most} are dropped"
    text += "prompts cut on the "
    text += f"{data.truncate_prompt} to {data.max_prompt_length} tokens"
    if args.prompts:
        return text
    return f"{text}, completions on the right to {data.max_completion_length}"


def verdict(found: Checked, *, drops: bool) -> str:
    """Returns what is wrong, and what a run does about it."""
    count = len(found.errors)
    bad = len({defect.origin for defect in found.errors if not defect.fatal})
    where = f" in {plural(bad, 'row')}" if bad else ""
    what = "refuses the data"
    if drops and not found.refused:
        what = f"drops {'it' if bad == 1 else 'them'}"
    elif drops:
        what += " (data.on_bad_rows=drop drops rows, not a fault of the whole file)"
    text = f"{plural(count, 'problem')}{where}; a run {what}\n"
    text += listing(found.errors, SHOWN)
    bare = {e.origin for e in found.errors if e.reason.startswith(NO_CHOSEN)}
    if found.rows and len(bare) == found.rows:
        text += "\nno row is a pair: for prompts to sample from add --prompts"
    return text + ("\n--json lists all of them" if count > SHOWN else "")


def plural(count: int, noun: str) -> str:
    """Returns "1 row", "1,200 rows"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    args = parse_args(argv)
    escape_unprintable()
    return guarded(check, args, result_alone=args.json)
