"""Checks data before training: tpmm check_data pairs.jsonl --model MODEL

Exit codes: 0 nothing is wrong, 2 training on it would be wrong, or bad input.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tpmm_jax.commands.data_checks import (
    Checked,
    check_labels,
    check_leaks,
    check_pairs,
    check_prompts,
    summary,
)
from tpmm_jax.commands.data_table import data_table, rows_view
from tpmm_jax.commands.line import Parser, guarded
from tpmm_jax.commands.prompt_file import plain
from tpmm_jax.config import Config, load_config
from tpmm_jax.data.batches import PairRow
from tpmm_jax.data.config import PARTS, DataConfig, check_fields
from tpmm_jax.data.problems import SHOWN, listing, place_of
from tpmm_jax.description import end_ids, read_tokenizer
from tpmm_jax.errors import BadInput
from tpmm_jax.loading import resolve
from tpmm_jax.loop.prompts import read_prompts
from tpmm_jax.report.console import RunConsole
from tpmm_jax.rewards.raters import NamedScorer
from tpmm_jax.rewards.scorer import import_object, load_scorer

DESCRIPTION = """\
Check preference pairs (or prompts) before training on them: every malformed row with
its file, line and column; repeats, lengths, leaks; and, with --model, the very tokens
and masks that a run trains on. It reads, splits and encodes with a run's own code: what
is listed here as an error a run refuses (data.on_bad_rows=drop: drops with a count).

FILE is what data.pairs of a config takes: .jsonl, .json (also .gz), .parquet, a saved
dataset, a hub name. Rows hold chosen and rejected with a prompt, with an instruction,
or without: then it is their common beginning. Texts or message lists.
"""
EPILOG = """\
examples:
  tpmm check_data pairs.jsonl                      what needs no tokenizer
  tpmm check_data pairs.jsonl --model org/name --eval held_out.jsonl
  tpmm check_data --config configs/mine.py         a run's files, model and limits
  tpmm check_data pairs.jsonl --fields chosen=better,rejected=worse,prompt=question
  tpmm check_data pairs.jsonl --model m.gguf --line 12 --line 80    these rows, whole
  tpmm check_data pairs.jsonl --json | jq .counts

Without --model nothing is said about tokens, masks, BOS, EOS and cuts. Exit code 2: a
row is malformed or its chosen equals its rejected. docs/data.md tells what each line of
the table means and what becomes of every such row.
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(prog="tpmm check_data", description=DESCRIPTION, epilog=EPILOG)
    add, defaults = parser.add_argument, DataConfig()
    add("files", metavar="FILE", nargs="*", help="default: those of --config")
    add("--config", metavar="FILE.py", help="take all of it from a run's config")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="overrides",
        help="change a field of that config, as of tpmm train; repeatable",
    )
    add("--model", metavar="MODEL", help="whose tokenizer: what tpmm sample takes")
    add("--prompts", action="store_true", help="FILEs hold prompts, not pairs")
    add("--eval", nargs="+", default=[], metavar="FILE", help="rows not to be leaked")
    add("--scorer", metavar="M:F", help="module:function that the labels are held to")
    add(
        "--fields",
        metavar="PART=COLUMN,...",
        help="columns that are not called prompt, chosen and rejected",
    )
    add("--prompt-field", metavar="COLUMN", help="of prompts (default: prompt)")
    add("--split", help="of a hub dataset (default: train)")
    add(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="write rows with the chat template (default: the config's; else if the "
        "rows are messages)",
    )
    for name in ("max_prompt_length", "max_completion_length"):
        option = f"--{name.replace('_', '-')}"
        add(option, type=int, metavar="N", help=f"default: {getattr(defaults, name)}")
    add("--truncate-prompt", choices=("left", "right"), help="default: left")
    add("--show", type=int, default=3, metavar="N", help="rows to print (default: 3)")
    add(
        "--line",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="print the rows of this line instead, with every token; repeatable",
    )
    add("--json", action="store_true", help="print rows, errors and counts as JSON")
    return parser.parse_args(argv)


def settings(args: argparse.Namespace) -> tuple[Config | None, DataConfig, list[str]]:
    """Returns the config if one is given, how data are read, and the files.

    Raises:
      BadInput: options that do not belong together or are out of range.
    """
    if args.overrides and args.config is None:
        raise BadInput("--set changes a field of --config; give that too")
    config = None if args.config is None else load_config(args.config, args.overrides)
    data = DataConfig() if config is None else config.data
    names = (
        *("split", "chat", "prompt_field", "truncate_prompt"),
        *("max_prompt_length", "max_completion_length"),
    )
    given = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if args.fields is not None:
        given["fields"] = parse_fields(args.fields)
    data = replace(data, **given)
    files = list(args.files)
    if not files:
        source = data.pairs if data.pairs is not None else data.prompts
        if source is None:
            raise BadInput("nothing to check: give FILE, or --config of a run")
        files, args.prompts = [source], data.pairs is None
    for name in ("max_prompt_length", "max_completion_length"):
        if getattr(data, name) < 1:
            raise BadInput(f"{name} is {getattr(data, name)}; use at least 1 token")
    if args.show < 0 or any(line < 0 for line in args.line):
        raise BadInput("--show and --line take numbers of 0 or more")
    return config, data, files


def parse_fields(text: str) -> dict[str, str]:
    """Returns {part: column} of "chosen=better,rejected=worse"."""
    found: dict[str, str] = {}
    for item in text.split(","):
        part, equals, column = (word.strip() for word in item.partition("="))
        if not equals:
            raise BadInput(
                f"--fields {text}: wanted PART=COLUMN with PART one of "
                f"{', '.join(PARTS)}, such as chosen=better,rejected=worse"
            )
        if part in found:
            raise BadInput(f"--fields {text}: {part} is given twice")
        found[part] = column
    check_fields(found, "--fields")
    return found


def find_tokenizer(
    model: str | None, config: Config | None, console: RunConsole
) -> tuple[Any, tuple[int, ...]]:
    """Returns the tokenizer, or None, and the ids that end a completion.

    Weights are not read; a directory may hold a tokenizer alone.
    """
    revision = None
    if model is None and config is not None:
        model, revision = config.model.source, config.model.revision
        if ":" in model and not pathlib.Path(model).exists():
            console.warn(
                f"model.source = {model} is a function that builds a model; give "
                "--model its directory to check tokens (WORKDIR/model of a run)"
            )
            return None, ()
    if model is None:
        return None, ()
    folder = pathlib.Path(model)
    if folder.is_dir() and not (folder / "config.json").exists():
        tokenizer = read_tokenizer(folder)
        if tokenizer is not None:
            return tokenizer, end_ids_of(tokenizer)
    found = resolve(model, revision)
    if found.tokenizer is None:
        raise BadInput(f"{model} has no tokenizer (tokenizer.json)")
    return found.tokenizer, end_ids(found.config, found.tokenizer)


def end_ids_of(tokenizer: Any) -> tuple[int, ...]:
    """Returns EOS alone, where there is no model's config to name further ends."""
    return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)


def find_scorer(name: str | None, config: Config | None) -> NamedScorer | None:
    """Returns the scorer that was named, or else the config's."""
    if name is not None:
        return NamedScorer(name, import_object(name, "--scorer"))
    if config is None or config.scorer.name is None:
        return None
    return NamedScorer(config.scorer.name, load_scorer(config.scorer))


def as_file(source: str, data: DataConfig, folder: str) -> str:
    """Returns a source as it is, or a file of what a "module:function" makes.

    Its prompts are numbered by their lines.
    """
    if ":" not in source or "/" in source or pathlib.Path(source).exists():
        return source
    made = read_prompts(source, "prompts", column=data.prompt_field, split=data.split)
    path = pathlib.Path(folder) / f"{source}.jsonl"
    lines = [json.dumps({data.prompt_field: plain(prompt)}) for prompt in made]
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def shown_rows(args: argparse.Namespace, found: Checked) -> list[PairRow]:
    """Returns the rows to print: those of --line, or from all over the set."""
    rows = found.encoded
    if args.line:
        return [row for row in rows if place_of(row.origin).number in args.line]
    count = min(args.show, len(rows))
    return [
        rows[number * (len(rows) - 1) // max(count - 1, 1)] for number in range(count)
    ]


def check(args: argparse.Namespace, console: RunConsole) -> int:
    """Runs one command line."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    # A scorer or a config may print; with --json that is not part of the output.
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
        config, data, files = settings(args)
        scorer = find_scorer(args.scorer, config)
        tokenizer, eos_ids = find_tokenizer(args.model, config, console)
        held = args.eval or ([data.eval_prompts] if data.eval_prompts else [])
        auto_chat = args.chat is None and config is None
        with tempfile.TemporaryDirectory() as folder:
            if args.prompts:
                read = [as_file(file, data, folder) for file in files]
                found = check_prompts(read, data, tokenizer, auto_chat=auto_chat)
            else:
                found = check_pairs(
                    files, data, tokenizer, eos_ids, auto_chat=auto_chat
                )
            check_leaks([as_file(file, data, folder) for file in held], data, found)
        if not args.prompts:
            check_labels(scorer, found)
    if args.json:
        print(json.dumps(summary(found), ensure_ascii=False))
    else:
        show(args, files, data, found, tokenizer, console)
    return BadInput.exit_code if found.errors else 0


def show(
    args: argparse.Namespace,
    files: list[str],
    data: DataConfig,
    found: Checked,
    tokenizer: Any,
    console: RunConsole,
) -> None:
    """Prints the table, some rows, and what is wrong."""
    limits = f"prompts cut on the {data.truncate_prompt} to {data.max_prompt_length}"
    limits += f" tokens, completions on the right to {data.max_completion_length}"
    rows = [("files", ", ".join(files))]
    if tokenizer is not None:
        template = "chat template" if found.chat else "texts to the letter"
        rows += [("tokens", f"{args.model or 'of the config'}, {template}; {limits}")]
    console.header(f"tpmm check_data: {found.rows:,} rows", rows)
    console.show(data_table(found, data.on_bad_rows == "drop"))
    some = shown_rows(args, found)
    if tokenizer is not None and some:
        console.note("")
        console.show(rows_view(tokenizer, some, whole=bool(args.line)))
    elif tokenizer is not None and args.line and not args.prompts:
        lines = ", ".join(map(str, args.line))
        console.note(f"\nno pair that trains stands on --line {lines}")
    console.note("")
    if not found.errors:
        console.note("nothing is wrong with these rows")
        return
    count, bad = len(found.errors), len({d.origin for d in found.errors})
    what = "drops them" if data.on_bad_rows == "drop" else "refuses the file"
    console.error(
        f"{plural(count, 'problem')} in {plural(bad, 'row')}; a run {what}\n"
        f"{listing(found.errors, SHOWN)}"
        + ("\n--json lists all of them" if count > SHOWN else "")
    )


def plural(count: int, noun: str) -> str:
    """Returns "1 row", "1,200 rows"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    args = parse_args(argv)
    # With --json the standard output is the summary's alone.
    console = RunConsole(sys.stderr if args.json else None)  # type: ignore[arg-type]
    return guarded(lambda: check(args, console), console)


if __name__ == "__main__":
    sys.exit(main())
