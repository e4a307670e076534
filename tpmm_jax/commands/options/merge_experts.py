"""The options of tpmm merge_experts."""

import argparse
from collections.abc import Sequence

from tpmm_jax.commands.options.shared import Parser, add_compiling, add_row_options

DESCRIPTION = """\
Merge the experts of a mixture back into one dense reward model, in float32 (our
reconstruction of UMM-RM, arXiv 2512.00724). In each layer that has experts

    theta = s theta_shared + (1 - s) sum_i m_i theta_i

for gate, up and down. The rule gives m: uniform (1 / X each), gating (the mean gate
probability over the tokens of the pairs) or learned (softmax weights per layer that
begin there and are trained with Bradley-Terry on the pairs, the experts frozen).

SOURCE is the workdir of tpmm train_reward whose best model is a mixture, a step of it
(runs/umm/reward@2), or a directory of tpmm upcycle. Pairs are those that the run held
out, unless --pairs names others. The output is an ordinary dense reward model; its
merge_experts.json records source, digests and weights.
"""
EPILOG = """\
examples:
  tpmm merge_experts runs/umm --output dense
  tpmm merge_experts runs/umm --rule uniform --output averaged
  tpmm merge_experts moe --rule gating --pairs pairs.jsonl --output dense

learned holds a share of the prompts out of the learning. Unless the loss is lower there
in the end than at the start, the start is kept, and a line says so. Give pairs that the
mixture was not trained on.
"""
# Options that mean something with --rule learned alone.
LEARNING = ("steps", "learning_rate", "batch_size", "holdout", "seed")
# And with pairs of --pairs alone.
_READING = (
    *("fields", "parse_json", "ignore_columns", "scored_pairs", "implicit_prompt"),
    *("chat", "drop_bad_rows"),
)

# Those of merging.ExpertMergeConfig, whose import takes seconds.
USUAL = {"steps": 100, "learning_rate": 0.1, "batch_size": 32, "holdout": 0.2}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(prog="tpmm merge_experts", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("source", metavar="SOURCE")
    add(
        "--rule",
        choices=("uniform", "gating", "learned"),
        default="learned",
        help="default: learned",
    )
    add("--output", required=True, metavar="DIR", help="a new or empty directory")
    add("--dtype", default="float32", help="of the output: float32 or bfloat16")
    add("--fsdp", type=int, default=1, help="devices to split weights over; -1: all")
    _add_learning(parser)
    reading = parser.add_argument_group("pairs").add_argument
    reading(
        "--pairs",
        nargs="+",
        metavar="FILE",
        help="prompt, chosen and rejected (default: what the run held out)",
    )
    add_row_options(reading, pairs=True)
    reading("--chat", action="store_const", const=True, help="use the chat template")
    reading(
        "--drop-bad-rows",
        action="store_const",
        const=True,
        help="drop bad rows instead of failing",
    )
    add_compiling(parser)
    args = parser.parse_args(argv)
    for names, needs in ((LEARNING, "--rule learned"), (_READING, "--pairs")):
        there = args.rule == "learned" if names is LEARNING else bool(args.pairs)
        given = [name for name in names if getattr(args, name) is not None]
        if given and not there:
            parser.error(f"--{given[0].replace('_', '-')} needs {needs}")
    return args


def _add_learning(parser: Parser) -> None:
    add = parser.add_argument_group("with --rule learned").add_argument
    add("--steps", type=int, help=f"steps of Adam (default: {USUAL['steps']})")
    add("--learning-rate", type=float, help=f"default: {USUAL['learning_rate']}")
    add(
        "--batch-size",
        type=int,
        help=f"pairs per step (default: {USUAL['batch_size']})",
    )
    text = f"share of the prompts held out (default: {USUAL['holdout']})"
    add("--holdout", type=float, help=text)
    add("--seed", type=int, help="of the split and the batches (default: 0)")
