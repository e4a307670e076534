"""python -m tpmm_jax.evaluate, the same as tpmm evaluate."""

import functools
import sys

from tpmm_jax.commands.dispatch import run

main = functools.partial(run, "evaluate")

if __name__ == "__main__":
    sys.exit(main())
