"""python -m tpmm_jax.train_reward, the same as tpmm train_reward."""

import functools
import sys

from tpmm_jax.commands.dispatch import run

main = functools.partial(run, "train_reward")

if __name__ == "__main__":
    sys.exit(main())
