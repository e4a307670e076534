"""The options of tpmm check_data."""

import argparse
from collections.abc import Callable, Sequence

from tpmm_jax.commands.options.shared import (
    Parser,
    add_overrides,
    add_row_options,
    add_timeout,
)
from tpmm_jax.data.config import DataConfig
from tpmm_jax.stopping import TIMEOUT

DESCRIPTION = """\
Check preference pairs (or prompts) before training on them: every malformed row with
its file, line and column; repeats, lengths, leaks; and, with --model, exactly the
tokens and masks that a run trains on. It reads, splits and encodes with a run's own
code: a run refuses every row listed here as an error, or drops it with a count
(data.on_bad_rows=drop).

FILE is what data.pairs of a config takes: .jsonl, .json, .csv, .tsv (also .gz, .zst),
.parquet, a saved dataset, a hub name. Rows hold chosen and rejected with a prompt, with
an instruction, or without: then it is their common beginning. Texts or message lists.
"""
EPILOG = """\
examples:
  tpmm check_data pairs.jsonl                      all checks that need no tokenizer
  tpmm check_data pairs.jsonl --model org/name --eval held_out.jsonl
  tpmm check_data --config configs/mine.py         a run's files, model and limits;
                                                   also of tpmm train_reward
  tpmm check_data pairs.jsonl --fields chosen=better,rejected=worse,prompt=question
  tpmm check_data pairs.jsonl --model m.gguf --line 12 --line 80    these rows, whole
  tpmm check_data pairs.jsonl --json | jq .counts

Without --model, tokens, masks, BOS, EOS and cuts are not checked. With --config the
evaluation's prompts, the iterations and the model's positions are checked too. Exit
code 2: something is listed as wrong. docs/data.md explains each line of the table and
what becomes of each row.
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(prog="tpmm check_data", description=DESCRIPTION, epilog=EPILOG)
    add, defaults = parser.add_argument, DataConfig()
    add("files", metavar="FILE", nargs="*", help="default: those of --config")
    add(
        "--config",
        metavar="FILE.py",
        help="check everything that a run of this config reads",
    )
    add_overrides(parser, "change a field of that config, as in tpmm train; repeatable")
    add(
        "--model", metavar="MODEL", help="its tokenizer is used; what tpmm sample takes"
    )
    add("--prompts", action="store_true", help="FILEs hold prompts, not pairs")
    add_rating_options(add)
    add(
        "--eval",
        nargs="+",
        default=[],
        metavar="FILE",
        help="evaluation rows that must not occur in FILE",
    )
    text = "a reward model: counts answers that it reads otherwise than transformers"
    add("--reward", metavar="MODEL", help=text)
    add("--scorer", metavar="M:F", help="module:function to compare the labels with")
    add_timeout(parser, f"the config's, else {TIMEOUT:g}")
    add_row_options(add, pairs=True)
    add("--prompt-field", metavar="COLUMN", help="column of prompts, also of --eval")
    add("--split", help="the split of a hub dataset (default: train)")
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
        help="print the rows of this line instead, with all tokens; repeatable",
    )
    add("--json", action="store_true", help="print rows, errors and counts as JSON")
    return parser.parse_args(argv)


def add_rating_options(add: Callable[..., argparse.Action]) -> None:
    """Adds the options of rated texts; ``add`` is a parser's add_argument."""
    add("--ratings", action="store_true", help="FILEs hold rated texts, not pairs")
    add(
        "--columns",
        metavar="COLUMN,...",
        help="of ratings in a .txt file: the cells of a line, separated by tabs",
    )
    add(
        "--max-length",
        type=int,
        metavar="N",
        help="of ratings: tokens of a prompt with its answer (default: 1024)",
    )
