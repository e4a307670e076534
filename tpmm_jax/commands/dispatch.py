"""The command tpmm: one name for all command lines."""

import difflib
import importlib
import sys
from collections.abc import Sequence

import tpmm_jax
from tpmm_jax.stopping import ends_process, watched

# Each is a module of this folder, imported only when it is called.
COMMANDS = {
    "train": "run a config: sample, label, merge, DPO, evaluate",
    "train_reward": "train a reward model on preference pairs",
    "plan": "what a config takes on given devices, before it runs",
    "sample": "talk to a model, or answer a file of prompts",
    "evaluate": "compare policies on prompts, with intervals",
    "best_of_n": "gold against proxy as the best of n answers is kept",
    "report": "make a run's report.html",
    "repair": "mend a run's folder after damage",
    "merge_checkpoints": "merge checkpoints by given or learned weights",
    "upcycle": "make a reward model a mixture of experts",
    "merge_experts": "merge a mixture's experts into one dense reward model",
    "check_data": "what is wrong with a data set, and how a model reads it",
    "export": "write a policy as a Hugging Face directory",
}

HELP = f"""usage: tpmm COMMAND [options]

Iterative preference optimisation in JAX.

commands:
{chr(10).join(f"  {name:<18} {text}" for name, text in COMMANDS.items())}

options:
  -h, --help         this text; "tpmm COMMAND --help" explains a command
  --version          print the version

examples:
  tpmm train --config configs/quickstart.py --workdir runs/mine
  tpmm sample runs/quickstart/learned --prompt "Once upon a time"
  tpmm export runs/quickstart/learned/trajectory@4 --output exported
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of the sub-command."""
    alone = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] in (["-h"], ["--help"], ["help"]):
        print(HELP, end="")
        return 0
    if argv[:1] == ["--version"]:
        print(f"tpmm_jax {tpmm_jax.__version__}")
        return 0
    if not argv:
        print(HELP, end="", file=sys.stderr)
        return 2
    # A dash for the underscore is what one types.
    name = argv[0].replace("-", "_") if not argv[0].startswith("-") else argv[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        print(
            f"error: tpmm has no command {argv[0]!r}; {hint}There are "
            f"{', '.join(COMMANDS)} (tpmm --help)",
            file=sys.stderr,
        )
        return 2
    return run(name, argv[1:], alone=alone)


def run(name: str, argv: Sequence[str] | None = None, *, alone: bool = False) -> int:
    """Returns the exit code of a sub-command; its imports can be stopped too.

    Help and options that are refused end here, before JAX is imported.

    Args:
      alone: whether the process is the command's own; without ``argv`` it is.
    """
    with watched():
        options = importlib.import_module(f"tpmm_jax.commands.options.{name}")
        options.parse_args(argv)
        code = importlib.import_module(f"tpmm_jax.commands.{name}").main(argv)
        if alone or argv is None:
            ends_process()
        return code
