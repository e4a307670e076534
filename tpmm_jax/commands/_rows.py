"""How the rows of a file are read: the options that commands share."""

import argparse
from typing import Any

from tpmm_jax.data.config import EARLIER, MARGIN, PARTS, check_fields
from tpmm_jax.errors import BadInput


def row_options(
    args: argparse.Namespace, *, pairs: bool = True, ratings: bool = False
) -> dict[str, Any]:
    """Returns the fields of DataConfig that were given.

    Args:
      pairs: whether pairs are read; otherwise no column of theirs has a name.
      ratings: whether rated texts are read, which have parts of their own.

    Raises:
      BadInput: names of no part, or of a part that is not read.
    """
    given: dict[str, Any] = {}
    if args.fields is not None:
        given["fields"] = parse_fields(args.fields, ratings=ratings)
        part = next((p for p in given["fields"] if p not in EARLIER), None)
        if not pairs and part is not None:
            raise BadInput(
                f"--fields {part}= names a column of pairs; that of prompts is "
                "--prompt-field"
            )
    if args.parse_json is not None:
        given["parse_json"] = args.parse_json
    if args.ignore_columns is not None:
        columns = [name.strip() for name in args.ignore_columns.split(",")]
        given["ignore_columns"] = tuple(filter(None, columns))
    if getattr(args, "scored_pairs", None) is not None:
        if not pairs:
            raise BadInput("--scored-pairs concerns pairs, and none are read")
        given["scored_pairs"] = args.scored_pairs
    if getattr(args, "implicit_prompt", None) is not None:
        if not pairs:
            raise BadInput("--implicit-prompt concerns pairs, and none are read")
        given["implicit_prompt"] = True
    return given


def parse_fields(text: str, *, ratings: bool = False) -> dict[str, str]:
    """Returns {part: column} of "chosen=better,rejected=worse"."""
    found: dict[str, str] = {}
    for item in text.split(","):
        part, equals, column = (word.strip() for word in item.partition("="))
        if not equals:
            raise BadInput(
                f"--fields {text}: wanted PART=COLUMN with PART one of "
                f"{', '.join((*PARTS, *EARLIER, MARGIN))}, such as "
                "chosen=better,rejected=worse"
            )
        if part in found:
            raise BadInput(f"--fields {text}: {part} is given twice")
        found[part] = column
    if not ratings:
        check_fields(found, "--fields")
    return found
