"""The options of tpmm train_reward."""

import argparse
from collections.abc import Sequence

from tpmm_jax.commands.options.shared import Parser, add_run_options

DESCRIPTION = """\
Train a reward model on preference pairs (Bradley-Terry): from a causal model, which
gets a new head, or from a reward model. The same command again continues a run. The
model with the lowest held-out loss is WORKDIR/reward@best.
"""
EPILOG = """\
example:
  tpmm train_reward --config configs/reward_stories260k.py --workdir runs/rm \\
      --set train.learning_rate=1e-4 --set data.pairs=my_pairs.jsonl
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(prog="tpmm train_reward", description=DESCRIPTION, epilog=EPILOG)
    add_run_options(parser, "train.epochs=2")
    return parser.parse_args(argv)
