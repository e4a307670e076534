"""The options of tpmm evaluate."""

import argparse
from collections.abc import Sequence

from tpmm_jax.commands.options.shared import (
    Parser,
    add_base,
    add_compiling,
    add_prompts,
    add_results,
    add_row_options,
    add_sampling,
    add_timeout,
)
from tpmm_jax.stopping import TIMEOUT

DESCRIPTION = """\
Compare policies: sample the same prompts from each with the same random keys, score the
answers, and give every number with its 95 % interval over prompts.

MODEL is a Hugging Face directory, a .gguf file, a hub id (org/name) or a step of a run
(runs/x/trajectory@2). A run's workdir (runs/x) means all its steps. Win rates and KL
are against the baseline, by default the first model (of a run: theta_0).
"""
EPILOG = """\
examples:
  tpmm evaluate runs/smollm2 --prompts held_out.jsonl --scorer my_scores:reward
  tpmm evaluate runs/a/trajectory@4 runs/b/trajectory@4 --prompts p.jsonl \\
      --scorer my_scores:reward --also fluent=my_scores:fluency --output out
  tpmm evaluate new --baseline old --prompts p.jsonl --judge careful=my_judges:judge
  tpmm evaluate runs/smollm2 --pairs held_out_pairs.jsonl

A scorer is a function (prompts, responses) -> [B, S] numbers, higher is better. A judge
is a function (prompts, first, second) -> [B] numbers in [0, 1], the share for the first
answer; it is asked in both orders. reward:SOURCE is a model that scores, judge:SOURCE
one that judges (docs/rewards.md). None of them sees who wrote what. Warnings say where
the reward rose while an independent measure fell, and where KL or length ran away.

The table (with --json the summary) goes to standard output, everything else to standard
error. In the summary, as in a run's metrics, "-inf" and "inf" are bounds of an interval
that is open because there are too few prompts or the scores hardly differ.
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(prog="tpmm evaluate", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("models", metavar="MODEL", nargs="+")
    add_prompts(parser, required=False)
    add(
        "--baseline",
        metavar="MODEL",
        help="default: the first MODEL, theta_0 of a run. A workdir given here means "
        "its newest policy",
    )
    add_base(parser)
    add("--scorer", metavar="M:F", help="module:function, the reward")
    for name, what in (("also", "a further scorer"), ("judge", "a judge")):
        add(
            f"--{name}",
            action="append",
            default=[],
            metavar="LABEL=M:F",
            help=f"{what}; repeatable",
        )
    add(
        "--judge-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="how a judge:SOURCE is asked and read: a field of the config's section "
        "judge, such as template_file=FILE; repeatable",
    )
    add_timeout(parser, f"{TIMEOUT:g}")
    add(
        "--pairs",
        metavar="FILE",
        help="preference pairs: accuracy on them, also without --prompts",
    )
    add("--drop-bad-rows", action="store_true", help="drop bad rows of --pairs")
    add_row_options(add, pairs=True)
    add_sampling(parser)
    add_results(parser, "new folder for all rows and summary.json")
    add_compiling(parser)
    return parser.parse_args(argv)
