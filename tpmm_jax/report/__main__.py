"""python -m tpmm_jax.report, the same as tpmm report."""

import functools
import sys

from tpmm_jax.commands.dispatch import run

main = functools.partial(run, "report")

if __name__ == "__main__":
    sys.exit(main())
