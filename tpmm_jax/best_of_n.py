"""python -m tpmm_jax.best_of_n, the same as tpmm best_of_n."""

import functools
import sys

from tpmm_jax.commands.dispatch import run

main = functools.partial(run, "best_of_n")

if __name__ == "__main__":
    sys.exit(main())
