"""The options of tpmm export."""

import argparse
from collections.abc import Sequence

from tpmm_jax.commands.options.shared import Parser, add_base, add_compiling

DESCRIPTION = """\
Write a policy or a reward model as a Hugging Face directory that transformers, vLLM and
others load: weights, tokenizer with its chat template, generation_config.json as the
source has it, and a model card (README.md) that says how it was made: the run's
configuration, rule and weights of every reference, the evaluation with intervals,
digests and versions.

MODEL is a step of a run (runs/x/trajectory@4), the mean of its policies
(runs/x/policy@mean), a run's workdir (the policy that it ships: the newest, unless the
config's ship says otherwise), or any other model that tpmm sample takes. A reward model
is runs/rm/reward@best, the workdir of tpmm train_reward, or what tpmm.load_reward
takes; it is written as a *ForSequenceClassification with one label. Of a run with
model.lora.rank the weights have the adapter added; --peft writes the adapter alone, as
a directory that PEFT loads, a reward model's with its head.
"""
EPILOG = """\
examples:
  tpmm export runs/smollm2/trajectory@4 --output exported --license apache-2.0
  tpmm export merged --output exported --dtype bfloat16 --name my-model
  tpmm export runs/lora/trajectory@2 --output adapter --peft
  tpmm export runs/rm/reward@best --output my-reward-model
  tpmm export runs/smollm2 --output exported --push me/my-model --private

The directory appears whole or not at all; one that is not empty is refused. --push
commits it to the Hugging Face Hub as the user of `hf auth login`, and beside it, as
training/, the run's config.json and report.html, which hold paths and samples as they
are.
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(prog="tpmm export", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("model", metavar="MODEL")
    add("--output", required=True, metavar="DIR", help="a new or empty directory")
    add("--revision", help="branch, tag or commit of a hub id")
    add_base(parser)
    add("--dtype", default="float32", help="float32 (default) or bfloat16")
    add("--max-shard-size", default="4GB", metavar="SIZE", help="default: 4GB")
    add("--peft", action="store_true", help="write a LoRA run's adapter, not weights")
    add("--name", help="the model's name in the card (default: the directory's)")
    add("--license", help="for the card, such as apache-2.0 (default: none)")
    add(
        "--base-model",
        metavar="ID",
        help="hub id (default: the run's, where known); with --peft a directory too",
    )
    add("--push", metavar="ID", help="hub repository to commit the directory to")
    add("--private", action="store_true", help="make that repository private if new")
    add_compiling(parser)
    args = parser.parse_args(argv)
    if args.private and args.push is None:
        parser.error("--private needs --push")
    return args
