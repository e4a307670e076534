"""python -m tpmm_jax.check_data, the same as tpmm check_data."""

import functools
import sys

from tpmm_jax.commands.dispatch import run

main = functools.partial(run, "check_data")

if __name__ == "__main__":
    sys.exit(main())
