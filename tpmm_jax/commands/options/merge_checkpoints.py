"""The options of tpmm merge_checkpoints."""

import argparse
from collections.abc import Callable, Sequence

from tpmm_jax.commands.options.shared import (
    Parser,
    add_base,
    add_compiling,
    add_row_options,
)

DESCRIPTION = """\
Merge checkpoints of one architecture, in float32: sum_k w_k theta_k, computed as
(sum_k w_k) theta_0 + sum_k w_k (theta_k - theta_0).

Weights 0.25 0.75 are a quarter of the first model and three quarters of the second.
Weights 1 1 are the sum of both models, which is hardly ever meant: to add what a second
model learned to the first, both fine-tuned from BASE, merge BASE FIRST SECOND with
weights -1 1 1.

MODEL is what tpmm sample takes. A run's workdir stands for all of its policies, and
runs/x/trajectory@1..3 for three of them. The first model is theta_0, the anchor; the
output has its tokenizer, chat template and generation_config.json. Reward models are
merged too, with one another alone; their mean is WARM (arXiv 2401.12187), and the
workdir of tpmm train_reward is its best model. The output is a
Hugging Face directory; its merge.json records sources, digests and weights.
"""
EPILOG = """\
examples:
  tpmm merge_checkpoints runs/a/trajectory@0..2 --weights 0.5 0.3 0.2 --output merged
  tpmm merge_checkpoints runs/a runs/b/trajectory@4 --uniform --output merged
  tpmm merge_checkpoints runs/a --learn pairs.jsonl --output merged

--learn finds weights with which the merge, scored as a policy against theta_0, prefers
the chosen answers, as a run with reference.rule=learned does (our reconstruction:
docs/losses.md): theta_0 has the weight --anchor-share, the others learned ones where
these predict labels better than equal weights do, which takes 30 prompts at least. A
share of the prompts is held out; accuracy and loss are reported on those alone. Give
pairs that no checkpoint was trained on: a checkpoint looks better than it is on its own
training pairs.
pairs.jsonl: chosen and rejected, with a prompt or without; texts or message lists.
"""
# Of options that mean something with --learn alone.
LEARNING_DEFAULTS = {
    "holdout": 0.2,
    "seed": 0,
    "max_prompt_length": 512,
    "max_completion_length": 512,
}

# Those of merging.ReferenceConfig, whose import takes seconds.
USUAL = {"steps": 100, "beta": 0.1, "learning_rate": 0.1, "batch_size": 64}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(
        prog="tpmm merge_checkpoints", description=DESCRIPTION, epilog=EPILOG
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL")
    add_base(parser)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--weights", type=float, nargs="+", metavar="W")
    how.add_argument("--uniform", action="store_true", help="1/K each")
    how.add_argument("--learn", metavar="PAIRS", help="learn them on preference pairs")
    add("--output", required=True, metavar="DIR", help="a new or empty directory")
    add("--dtype", default="float32", help="dtype of the output: float32 or bfloat16")
    add("--fsdp", type=int, default=1, help="devices to split weights over; -1: all")
    learning = add_learning(parser)
    add_compiling(parser)
    args = parser.parse_args(argv)
    given = [a for a in learning if getattr(args, a.dest) is not None]
    if given and args.learn is None:
        parser.error(f"{given[0].option_strings[0]} needs --learn")
    for name, value in LEARNING_DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def add_learning(parser: Parser) -> list[argparse.Action]:
    """Adds the options that mean something with --learn alone; None where not given."""
    usual = LEARNING_DEFAULTS
    add = parser.add_argument_group("with --learn").add_argument
    return [
        *add_fit(add),
        add(
            "--holdout",
            type=float,
            help=f"share of prompts held out (default: {usual['holdout']})",
        ),
        add("--seed", type=int, help="seed of the split and the batches (default: 0)"),
        add(
            "--drop-bad-rows",
            action="store_const",
            const=True,
            help="drop bad rows of PAIRS instead of failing",
        ),
        *add_row_options(add, pairs=True),
        *(
            add(
                f"--max-{part}-length",
                type=int,
                help=f"tokens (default: {usual[f'max_{part}_length']})",
            )
            for part in ("prompt", "completion")
        ),
        add(
            "--chat",
            action=argparse.BooleanOptionalAction,
            help="write pairs with the chat template (default: if there is one)",
        ),
    ]


def add_fit(add: Callable[..., argparse.Action]) -> list[argparse.Action]:
    """Adds the options that say how weights are found, fields of ReferenceConfig."""
    return [
        add(
            "--fit",
            choices=("margins", "exact", "adam"),
            help="margins: by regression on each model's log-probs (default); exact: "
            "from there on through the merged model; adam: through it alone, with "
            "theta_0's weight too",
        ),
        add("--anchor-share", type=float, help="theta_0's weight (0.5; adam: learned)"),
        add(
            "--granularity",
            choices=("model", "layer"),
            help="exact, adam: weights per model or per layer",
        ),
        add(
            "--objective",
            choices=("calibrated", "fixed"),
            help="exact, adam: fit D's scale, or not",
        ),
        add(
            "--beta",
            type=float,
            help="exact, adam: scale of D with --objective fixed; adam: where it "
            f"starts ({USUAL['beta']})",
        ),
        add("--steps", type=int, help=f"adam: how many (default: {USUAL['steps']})"),
        add(
            "--learning-rate",
            type=float,
            help=f"adam: on the logits ({USUAL['learning_rate']})",
        ),
        add(
            "--batch-size",
            type=int,
            help=f"adam: pairs per step ({USUAL['batch_size']})",
        ),
    ]
