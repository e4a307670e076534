"""python -m tpmm_jax.export, the same as tpmm export."""

import functools
import sys

from tpmm_jax.commands.dispatch import run

main = functools.partial(run, "export")

if __name__ == "__main__":
    sys.exit(main())
