"""A command of many processes that computes nothing: it waits until it is stopped."""

import argparse
import sys
import time

from tpmm_jax.commands._line import guarded
from tpmm_jax.errors import Stopped
from tpmm_jax.hosts import add_options, asked_all
from tpmm_jax.log.console import RunConsole
from tpmm_jax.stopping import boundaries


def work(args: argparse.Namespace, console: RunConsole) -> None:
    print("all are there")
    with boundaries():
        while asked_all() is None:
            time.sleep(0.05)
    raise Stopped("stopped at a boundary")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_options(parser)
    print("started")
    sys.exit(guarded(work, parser.parse_args(), many=True))
