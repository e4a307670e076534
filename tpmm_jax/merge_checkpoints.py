"""python -m tpmm_jax.merge_checkpoints, the same as tpmm merge_checkpoints."""

import functools
import sys

from tpmm_jax.commands.dispatch import run

main = functools.partial(run, "merge_checkpoints")

if __name__ == "__main__":
    sys.exit(main())
