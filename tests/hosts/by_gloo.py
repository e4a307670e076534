"""A command in one process whose devices add up as those of many processes do.

    python -m by_gloo MODULE WORDS

Gloo adds in another order than XLA does within one process: last bits differ, and
training lets them grow.
"""

import runpy
import sys

import jax
from processes import free_port

if __name__ == "__main__":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{free_port()}", 1, 0)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
