"""How long a command takes to explain itself, and a run to start again.

    python benchmarks/startup.py --rounds 3 [--before CHECKOUT]

First the CPU seconds of --help of every command, beside those of `import jax`. Then a
run of one iteration of configs/quickstart.py in a new workdir: with an empty cache of
compiled programs, with the one that this left, and with --no-compilation-cache.
With --before, another version of the project, then the whole of configs/quickstart.py
as each has it, with an empty cache; and once more as it is here, with the one that this
left. Each in processes of their own, in turns; medians of the rounds, wall and CPU
seconds.
"""

import argparse
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from measure import versions

from tpmm_jax.commands.dispatch import COMMANDS

HERE, CONFIG = pathlib.Path(__file__).parents[1], pathlib.Path("configs/quickstart.py")
RUN = ["train", "--config", str(HERE / CONFIG), "--set", "iterations=1"]


def spent(words: Sequence[str], **environment: str) -> tuple[float, float]:
    """Returns the wall and the CPU seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, *words],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | environment,
    )
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu


def told(some: Sequence[tuple[float, float]]) -> str:
    """Returns the medians and the spread of wall and CPU seconds."""
    parts = []
    for what, values in zip(("wall", "CPU"), zip(*some)):
        low, high = min(values), max(values)
        middle = statistics.median(values)
        parts.append(f"{middle:.2f} s {what} ({low:.2f} to {high:.2f})")
    return ", ".join(parts)


def quickstarts(
    before: pathlib.Path, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Returns what the whole quickstart took: {which: of each round}."""
    runs = {"before": before.resolve(), "empty": HERE, "warm": HERE}
    found: dict[str, list[tuple[float, float]]] = {which: [] for which in runs}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for which, tree in runs.items():
                words = [str(tree / CONFIG), "--workdir", f"{folder}/{which}"]
                cache = f"{folder}/programs-{'before' if which == 'before' else 'now'}"
                environment = {"PYTHONPATH": str(tree), "XDG_CACHE_HOME": cache}
                one = spent(words, JAX_PLATFORMS="cpu", **environment)
                found[which].append(one)
    return found


def main() -> None:
    """Prints a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=pathlib.Path, metavar="CHECKOUT")
    args = parser.parse_args()
    rounds = args.rounds
    helped = [
        spent(["-m", "tpmm_jax", name, "--help"])
        for _ in range(rounds)
        for name in COMMANDS
    ]
    print(f"--help of {len(COMMANDS)} commands, each: {told(helped)}")
    print(f"import jax: {told([spent(['-c', 'import jax']) for _ in range(rounds)])}")
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for what, more in (("empty", 0), ("warm", 0), ("none", 1)):
                words = ["-m", "tpmm_jax", *RUN, "--workdir", f"{folder}/{what}"]
                words += ["--no-compilation-cache"] * more
                one = spent(words, XDG_CACHE_HOME=folder, JAX_PLATFORMS="cpu")
                found.setdefault(what, []).append(one)
    for what, some in found.items():
        print(f"a run with a cache that is {what}: {told(some)}")
    if args.before is not None:
        for what, some in quickstarts(args.before, rounds).items():
            print(f"the quickstart, {what}: {told(some)}")
    print(versions())


if __name__ == "__main__":
    main()
