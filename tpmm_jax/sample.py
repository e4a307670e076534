"""python -m tpmm_jax.sample, the same as tpmm sample."""

import sys

from tpmm_jax.commands.sample import main

if __name__ == "__main__":
    sys.exit(main())
