"""The options of tpmm sample."""

import argparse
from collections.abc import Sequence

from tpmm_jax.commands.options.shared import (
    Parser,
    add_base,
    add_compiling,
    add_row_options,
    add_sampling,
)

DESCRIPTION = """\
Talk to a model, continue one prompt, or answer a file of prompts.

MODEL is a Hugging Face directory, a .gguf file, a PEFT directory of LoRA, a hub id
(org/name), a step of a run (runs/x/trajectory@2), the mean of its policies
(runs/x/policy@mean), or a run's workdir (runs/x): the policy that it ships, the newest
unless its config says otherwise. With neither --prompt nor --prompts, lines are read
from standard input: on a terminal they are a conversation; piped in, each line is a
prompt.

The chat template is used where the model has one; --no-chat uses texts as they are.
"""
EPILOG = """\
examples:
  tpmm sample runs/smollm2                              talk to what the run ships
  tpmm sample runs/smollm2/trajectory@0 --prompt "Hi"   ask theta_0 one thing
  tpmm sample org/name --prompts p.jsonl --output a.jsonl --num-samples 4
  echo "Once upon a time" | tpmm sample model.gguf --temperature 0 --no-chat

--prompts reads what data.prompts of a config reads: .jsonl, .json, .csv, .txt,
.parquet, a saved dataset, a hub name or module:function. The same command continues an
output that was interrupted. The same seed gives the tokens that tpmm.generate gives.
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(prog="tpmm sample", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("model", metavar="MODEL")
    add("--revision", help="branch, tag or commit of a hub id")
    add_base(parser)
    add("--prompt", metavar="TEXT", help="answer this prompt and exit")
    add("--prompts", metavar="FILE", help="answer every prompt of a file")
    add("--prompt-field", default="prompt", help="column of prompts (default: prompt)")
    add_row_options(add, pairs=False)
    add("--output", metavar="FILE", help="write answers as JSONL (default: stdout)")
    add(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="default: 256, at most half of the model's positions",
    )
    add_sampling(parser)
    add(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="write prompts with the chat template (default: if there is one)",
    )
    add("--system", metavar="TEXT", help="a system message; needs the chat template")
    add("--dtype", default="float32", help="float32 (default) or bfloat16")
    add_compiling(parser)
    return parser.parse_args(argv)
