"""The options of tpmm best_of_n."""

import argparse
from collections.abc import Sequence

from tpmm_jax.commands.options.shared import (
    Parser,
    add_base,
    add_compiling,
    add_drawing,
    add_prompts,
    add_results,
    add_row_options,
    add_timeout,
)
from tpmm_jax.stopping import TIMEOUT

DESCRIPTION = """\
Best of n: draw many answers to each prompt, keep of n the one that a proxy scores
highest, and see what it is worth by a gold score that nobody chose by. Where gold falls
while the proxy rises, the proxy is being exploited.

POLICY is what tpmm evaluate takes: a Hugging Face directory, a .gguf file, a hub id or
a step of a run (runs/x/trajectory@2). A run's workdir (runs/x) means all its steps.
One pool of --samples answers a prompt gives every n up to --n, without bias.
"""
EPILOG = """\
examples:
  tpmm best_of_n runs/x/trajectory@2 --prompts p.jsonl --proxy my_scores:reward \\
      --gold my_scores:gold --output curves
  tpmm best_of_n org/name --prompts p.jsonl --proxy small=my_scores:small \\
      --proxy large=my_scores:large --gold my_scores:gold --n 16

Scorers are functions (prompts, responses) -> [B, S] numbers, higher is better. With
--output the same command goes on where it was stopped, further policies can be added,
and other scorers rate the answers that are there; nothing is drawn twice. The folder
holds the answers, best_of_n.json (every n), best_of_n.html and best_of_n.png.

The table (with --json the summary) goes to standard output, everything else to standard
error. KL is log n - (n - 1)/n nats, an upper bound on that of best of n to its policy.
"""
# Answers that are drawn at once where --batch-size does not say.
ANSWERS_AT_ONCE = 256


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(prog="tpmm best_of_n", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("models", metavar="POLICY", nargs="+")
    add_prompts(parser, required=True)
    add(
        "--proxy",
        action="append",
        required=True,
        metavar="[LABEL=]NAME",
        help="the scorer that picks, module:function; repeatable with labels",
    )
    add("--gold", required=True, metavar="NAME", help="the scorer that judges the pick")
    add_timeout(parser, f"{TIMEOUT:g}")
    add("--n", type=int, default=64, help="the largest n (default: 64)")
    add(
        "--samples",
        type=int,
        metavar="N",
        help="answers drawn for each prompt (default: 2 n)",
    )
    add_base(parser)
    add_row_options(add, pairs=False)
    add_drawing(parser)
    add(
        "--batch-size",
        type=int,
        metavar="B",
        help=f"prompts per batch (default: of about {ANSWERS_AT_ONCE} answers)",
    )
    add_results(parser, "folder for answers, curves, page and picture")
    add_compiling(parser)
    return parser.parse_args(argv)
