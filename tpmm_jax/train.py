"""python -m tpmm_jax.train, the same as tpmm train."""

import functools
import sys

from tpmm_jax.commands.dispatch import run

main = functools.partial(run, "train")

if __name__ == "__main__":
    sys.exit(main())
