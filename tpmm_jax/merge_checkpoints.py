"""python -m tpmm_jax.merge_checkpoints, the same as tpmm merge_checkpoints."""

import sys

from tpmm_jax.commands.merge_checkpoints import main

if __name__ == "__main__":
    sys.exit(main())
