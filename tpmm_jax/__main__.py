"""python -m tpmm_jax, the same as tpmm."""

import sys

from tpmm_jax.commands.dispatch import main

if __name__ == "__main__":
    sys.exit(main())
