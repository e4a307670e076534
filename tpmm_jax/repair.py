"""python -m tpmm_jax.repair, the same as tpmm repair."""

import functools
import sys

from tpmm_jax.commands.dispatch import run

main = functools.partial(run, "repair")

if __name__ == "__main__":
    sys.exit(main())
