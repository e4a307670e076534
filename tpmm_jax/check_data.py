"""python -m tpmm_jax.check_data, the same as tpmm check_data."""

import sys

from tpmm_jax.commands.check_data import main

if __name__ == "__main__":
    sys.exit(main())
