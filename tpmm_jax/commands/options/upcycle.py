"""The options of tpmm upcycle."""

import argparse
from collections.abc import Sequence

from tpmm_jax.commands.options.shared import Parser, add_base, add_compiling

DESCRIPTION = """\
Make a dense reward model a mixture of experts (our reconstruction of UMM-RM, arXiv
2512.00724): in each chosen layer the feed-forward becomes a shared expert, always
active with the share S, and routed experts, of which each token passes through the
top k. All begin as copies: the rewards stay what they were until it is trained.

SOURCE is the workdir of tpmm train_reward (its best model), a step of it
(runs/rm/reward@2), or a directory or hub id of a *ForSequenceClassification with one
label. The output is a directory that tpmm_jax alone loads; upcycle.json records how it
was made. To upcycle and train in one run, set experts.count of tpmm train_reward.
"""
EPILOG = """\
examples:
  tpmm upcycle runs/rm --output moe
  tpmm upcycle runs/rm --experts 8 --top-k 4 --layers 0,4-7 --noise 0.01 --output moe
"""

# Those of models.upcycling.UpcyclingConfig, whose import takes a second.
USUAL = {"top_k": 2, "shared": 0.5, "layers": "all", "noise": 0.0}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(prog="tpmm upcycle", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("source", metavar="SOURCE")
    add_base(parser)
    add("--experts", type=int, default=4, help="routed ones (default: 4)")
    add(
        "--top-k",
        type=int,
        default=USUAL["top_k"],
        help="of which a token passes through so many, 2 or more (default: 2)",
    )
    add(
        "--shared",
        type=float,
        default=USUAL["shared"],
        metavar="S",
        help="share of the expert that is always active (default: 0.5)",
    )
    add(
        "--layers",
        default=USUAL["layers"],
        help='"all" (default), or numbers from 0 and ranges, such as 0,4-7',
    )
    add(
        "--noise",
        type=float,
        default=USUAL["noise"],
        help="added to each routed copy, in standard deviations of its matrix; the "
        "rewards then change, by how much is said (default: 0)",
    )
    add("--seed", type=int, default=0, help="of routers and noise (default: 0)")
    add("--output", required=True, metavar="DIR", help="a new or empty directory")
    add("--dtype", default="float32", help="float32 (default) or bfloat16")
    add_compiling(parser)
    return parser.parse_args(argv)
