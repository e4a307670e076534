"""python -m tpmm_jax.train, the same as tpmm train."""

import sys

from tpmm_jax.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
