"""Merging the policies of a run: in parts, against float32 deltas in scratch files.

    JAX_PLATFORMS=cpu python benchmarks/merge_run.py --workdir runs/merge-run

A trajectory of four policies of a Gemma-architecture model of 0.5 B parameters, random
weights, stored as bfloat16 deltas; weights 1/2 and three of 1/6. "files" is what a run
did before, and what learning through the network still does: every policy is written
once more, in float32, and read back; "parts" is what a run does (Disk.merge). Each way
in a fresh process, three rounds in turn; prints the medians of seconds, of bytes
written and of the process's most resident anonymous memory. The sums are compared.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import time

import jax
import numpy as np
from measure import PeakMemory, fresh, versions

from tpmm_jax.axes import Params
from tpmm_jax.merging import Deltas, merge_parts
from tpmm_jax.models import Decoder
from tpmm_jax.models.families import make_config
from tpmm_jax.store import Trajectory, tree_digest

WEIGHTS = np.array([[1 / 2, 1 / 6, 1 / 6, 1 / 6]])
WAYS, ROUNDS = ("files", "parts"), 3


def decoder() -> Decoder:
    config = make_config(
        "gemma", vocab_size=32_768, width=1024, mlp_width=8192, num_layers=16,
        num_heads=8, num_kv_heads=1, head_dim=128,
    )  # fmt: skip
    return Decoder(config)


def make(folder: pathlib.Path) -> None:
    """Writes the trajectory."""
    first = decoder().init(jax.random.key(0))
    with Trajectory(folder, storage="bfloat16_delta") as trajectory:
        for k in range(WEIGHTS.shape[1]):
            moved = jax.tree.map(lambda x, k=k: x * (1 + 1e-3 * k), first)
            trajectory.append(k, moved, {})


def one(folder: pathlib.Path, way: str) -> None:
    """Merges once in this process; prints a JSON line."""
    trajectory = Trajectory(folder / "trajectory", read_only=True)
    target, names = decoder().abstract_params("float32"), ["model"]

    def restore(k: int) -> Params:
        return trajectory.restore(k, target)

    before, started = written(), time.monotonic()
    with PeakMemory() as memory:
        if way == "files":
            count = WEIGHTS.shape[1]
            with Deltas(folder / "scratch", restore, count, names) as deltas:
                merged = jax.block_until_ready(deltas.merge(WEIGHTS))
        else:
            merged = merge_parts(trajectory.restore_part, target, WEIGHTS, names)
    row = {
        "seconds": time.monotonic() - started,
        "written_gb": (written() - before) / 1e9,
        "peak_gib": memory.peak / 2**30,
        "digest": tree_digest(merged),
    }
    print(json.dumps(row))


def written() -> int:
    """Returns the bytes that this process has handed to the system to write."""
    fields = pathlib.Path("/proc/self/io").read_text().split()
    return int(fields[fields.index("wchar:") + 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--only", choices=WAYS, help="one merge, in this process")
    args = parser.parse_args()
    if args.only:
        one(args.workdir, args.only)
        return
    shutil.rmtree(args.workdir / "trajectory", ignore_errors=True)
    make(args.workdir / "trajectory")
    size = 4 * decoder().num_params / 1e9
    print(f"{versions()}; a policy is {size:.2f} GB in float32", flush=True)
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            command = ("--workdir", str(args.workdir), "--only", way)
            rows[way].append(fresh(__file__, *command))
            print(way, rows[way][-1], flush=True)
    assert len({row.pop("digest") for found in rows.values() for row in found}) == 1
    for way, found in rows.items():
        middle = {k: statistics.median(row[k] for row in found) for k in found[0]}
        print(way, {k: round(v, 2) for k, v in middle.items()})


if __name__ == "__main__":
    main()
