"""The options of tpmm plan."""

import argparse
from collections.abc import Sequence

from tpmm_jax.commands.options.shared import Parser, add_overrides

DESCRIPTION = """\
What a config takes on given devices, before they are paid for: per program memory,
operations, bytes moved and the time at the chip's peak. Neither weights nor a tokenizer
nor the devices are needed. Nothing is run.
"""
EPILOG = """\
examples:
  tpmm plan --config configs/gemma2b.py --topology v5e:4x4
  tpmm plan --config configs/gemma2b.py --topology h100:8 --mesh
  tpmm plan --config configs/gemma2b.py --topology v5p:2x2x2 --model llama3-8b
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = Parser(prog="tpmm plan", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("--config", required=True, help="of tpmm train, or of tpmm train_reward")
    add_overrides(
        parser, "change one field of the config, such as mesh.fsdp=16; repeatable"
    )
    add(
        "--topology",
        default="local",
        metavar="DEVICES",
        help="a TPU slice (v5e:4x4, v5p:2x2x2, v6e:4x4), the GPUs of a node (h100:8, "
        "by arithmetic), or local, the devices at hand (default)",
    )
    add(
        "--model",
        help="a published model such as llama3-8b, or a directory with a config.json "
        "(default: the config's model.source)",
    )
    add(
        "--pairs",
        type=int,
        metavar="N",
        help="pairs that the data holds, of offline runs and reward models: the time "
        "is then of an iteration, or of the run",
    )
    add("--mesh", action="store_true", help="list the meshes alone; compiles nothing")
    add("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)
