"""The options of tpmm train."""

import argparse
from collections.abc import Sequence

from tpmm_jax.commands.options.shared import Parser, add_run_options

DESCRIPTION = """\
Iterative DPO against the previous policy, a merge of all earlier ones or another
reference (reference.rule). The same command again continues a run.
"""
EPILOG = """\
example:
  tpmm train --config configs/smollm2.py --workdir runs/smollm2 \\
      --set loss.beta=0.2 --set iterations=3
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(prog="tpmm train", description=DESCRIPTION, epilog=EPILOG)
    add_run_options(parser, "loss.beta=0.2")
    parser.add_argument(
        "--rescore",
        action="store_true",
        help="a scorer or judge was edited: rate all evaluations and the unfinished "
        "iteration again, and mark the iterations that an earlier scorer labelled",
    )
    return parser.parse_args(argv)
