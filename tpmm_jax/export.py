"""python -m tpmm_jax.export, the same as tpmm export."""

import sys

from tpmm_jax.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
