"""python -m tpmm_jax.evaluate, the same as tpmm evaluate."""

import sys

from tpmm_jax.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
