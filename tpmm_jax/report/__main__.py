"""python -m tpmm_jax.report, the same as tpmm report."""

import sys

from tpmm_jax.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
