"""What the options of several commands share."""

import argparse
import difflib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from tpmm_jax.errors import BadInput
from tpmm_jax.hosts import add_options as add_process_options
from tpmm_jax.log.escapes import printable


class Parser(argparse.ArgumentParser):
    """argparse with examples kept as written, and nearest names for a typo."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            # An abbreviation would change its meaning with the next option added.
            allow_abbrev=False,
            **kwargs,
        )

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong and how to see what is right; exits with 2."""
        known = [name for a in self._actions for name in a.option_strings]
        hints = []
        if message.startswith("unrecognized arguments"):
            for word in message.split(":", 1)[1].split():
                name = word.partition("=")[0]
                near = [k for k in known if k.startswith(name)]
                near = near or difflib.get_close_matches(name, known, n=1)
                if name.startswith("-") and near:
                    hints.append(f"did you mean {near[0]}?")
        text = "; ".join([f"error: {message}", *hints])
        text = f"{printable(text)}\nhow to use it: {self.prog} --help"
        print(text, file=sys.stderr)
        raise SystemExit(BadInput.exit_code)


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds --set, as ``config.load_config`` takes its overrides."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="overrides",
        help=text,
    )


def add_base(parser: argparse.ArgumentParser) -> None:
    """Adds --base to a command whose MODEL may be a PEFT directory."""
    text = "the model under a PEFT adapter (default: the one that the adapter names)"
    parser.add_argument("--base", metavar="BASE", help=text)


def add_timeout(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds --timeout to a command that calls a user's functions."""
    text = f"that one call of a function may take, or none (default: {default})"
    parser.add_argument("--timeout", metavar="SECONDS", help=f"seconds {text}")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how prompts are answered, and how often."""
    add = parser.add_argument
    add_drawing(parser)
    add("--num-samples", type=int, default=1, help="answers per prompt (default: 1)")
    add("--batch-size", type=int, default=32, help="prompts per batch (default: 32)")


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how one answer is drawn."""
    add = parser.add_argument
    add("--temperature", type=float, default=1.0, help="0 is greedy (default: 1)")
    add(
        "--top-p",
        type=float,
        default=1.0,
        help="keep the most likely tokens of this total probability (default: 1, all)",
    )
    add(
        "--top-k",
        type=int,
        default=0,
        help="keep this many of the most likely tokens (default: 0, all)",
    )
    add("--seed", type=int, default=0, help="default: 0")


def add_compiling(parser: argparse.ArgumentParser) -> None:
    """Adds --no-compilation-cache to a command that compiles."""
    parser.add_argument(
        "--no-compilation-cache",
        action="store_false",
        dest="compilation_cache",
        help="neither use nor keep compiled programs in the user's cache",
    )


def add_prompts(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Adds the options that say which prompts are answered."""
    add = parser.add_argument
    add(
        "--prompts",
        required=required,
        metavar="FILE",
        help="what data.prompts of a config reads: a file, a saved dataset, a hub name "
        "or module:function",
    )
    add("--prompt-field", default="prompt", help="column of prompts (default: prompt)")
    add("--split", default="train", help="the split of a hub dataset (default: train)")
    add("--limit", type=int, metavar="N", help="the first N prompts only")


def add_results(parser: argparse.ArgumentParser, folder: str) -> None:
    """Adds the options that say how answers are written and where results go.

    Args:
      folder: what --output names.
    """
    add = parser.add_argument
    add("--max-new-tokens", type=int, default=128, metavar="N", help="default: 128")
    add("--chat", action="store_true", help="write prompts with the chat template")
    add("--output", metavar="DIR", help=folder)
    add("--json", action="store_true", help="print the summary as JSON")


def add_row_options(
    add: Callable[..., argparse.Action], *, pairs: bool
) -> list[argparse.Action]:
    """Adds the options that say how rows are read; None where not given.

    Args:
      add: a parser's add_argument.
      pairs: whether the command reads pairs, or prompts alone.
    """
    parts = (
        "prompt, chosen, rejected, system, history, margin"
        if pairs
        else "system, history"
    )
    actions = [
        add(
            "--fields",
            metavar="PART=COLUMN,...",
            help=f"columns that have other names than {parts}",
        ),
        add(
            "--parse-json",
            action=argparse.BooleanOptionalAction,
            help="read conversations that are stored as text, or take such texts as "
            "they are (default: refuse them)",
        ),
        add(
            "--ignore-columns",
            metavar="COLUMN,...",
            help="columns beside the prompt that are left unread, not refused",
        ),
    ]
    if pairs:
        actions.append(
            add(
                "--scored-pairs",
                choices=("best_worst", "all"),
                help="what is made of several scored answers in a row (default: "
                "best_worst)",
            )
        )
        text = "take the common beginning of chosen and rejected as the prompt, even "
        text += "beside a question or under a chat template"
        actions.append(
            add("--implicit-prompt", action="store_const", const=True, help=text)
        )
    return actions


def add_run_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Adds --config, --workdir and --set.

    Args:
      example: of a field and its value, for the help of --set.
    """
    add_process_options(parser)
    add = parser.add_argument
    add("--config", required=True, help="a Python file with get_config()")
    add("--workdir", help="where the run is kept (default: runs/NAME of the config)")
    add_overrides(
        parser, f"change one field of the config, such as {example}; repeatable"
    )
    add_compiling(parser)
