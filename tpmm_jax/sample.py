"""python -m tpmm_jax.sample, the same as tpmm sample."""

import functools
import sys

from tpmm_jax.commands.dispatch import run

main = functools.partial(run, "sample")

if __name__ == "__main__":
    sys.exit(main())
