"""Merging eight directories of 243 MB, against reading them once and writing once.

    JAX_PLATFORMS=cpu python benchmarks/merge_files.py --workdir runs/merge-files

A Gemma architecture of 60.8 M parameters in float32, eight times. In turn, each in a
process of its own that imports first and is timed after: `tpmm merge_checkpoints` with
given weights, digests and signal-to-rounding ratios included; the floor, which reads
each file once in pieces of 1 MiB, adds in float32 and writes once; and with --mergekit
PATH its mergekit-yaml, linear, whose time includes its imports, as a command's does.
Files are in the page cache. Bars: time at most 3 times the floor; anonymous memory at
most twice the largest stacked leaf + 100 MB.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
from measure import PeakMemory, fresh, versions

import tpmm_jax as tpmm
from tpmm_jax.models import Decoder
from tpmm_jax.models.families import make_config

COUNT = 8
WEIGHTS = [(k + 1) / 36 for k in range(COUNT)]
PIECE = 2**18  # numbers


def decoder() -> Decoder:
    return Decoder(
        make_config(
            "gemma",
            vocab_size=32768,
            width=512,
            mlp_width=3072,
            num_layers=8,
            num_heads=8,
            num_kv_heads=4,
            head_dim=64,
        )
    )


def models(workdir: pathlib.Path) -> list[str]:
    """Returns the directories, made if they are missing."""
    found = [workdir / f"model-{k}" for k in range(COUNT)]
    for k, path in enumerate(found):
        if not path.exists():
            made = decoder()
            tpmm.save(tpmm.Model(made, made.init(jax.random.key(k))), path)
    return list(map(str, found))


def ours(workdir: pathlib.Path) -> None:
    from tpmm_jax.commands import merge_checkpoints

    out = workdir / "out"
    words = [*models(workdir), "--output", str(out), "--weights", *map(str, WEIGHTS)]
    with PeakMemory() as memory:
        start, busy = time.perf_counter(), time.process_time()
        code = merge_checkpoints.main(words)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    assert code == 0
    told(seconds, busy, memory.peak - memory.start)


def floor(workdir: pathlib.Path) -> None:
    paths = [pathlib.Path(path) / "model.safetensors" for path in models(workdir)]
    size = paths[0].stat().st_size
    total, piece = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    (workdir / "out").mkdir()
    with PeakMemory() as memory:
        start, busy = time.perf_counter(), time.process_time()
        files = [path.open("rb", buffering=0) for path in paths]
        header = 8 + int.from_bytes(files[0].read(8), "little")
        with (workdir / "out" / "sum").open("wb", buffering=0) as out:
            for file in files:
                file.seek(header)
            for place in range(header, size, 4 * PIECE):
                count = min(PIECE, (size - place) // 4)
                for k, (file, weight) in enumerate(zip(files, WEIGHTS)):
                    file.readinto(memoryview(piece[:count]).cast("B"))
                    if k == 0:
                        np.multiply(piece[:count], weight, out=total[:count])
                    else:
                        piece[:count] *= np.float32(weight)
                        total[:count] += piece[:count]
                out.write(memoryview(total[:count]).cast("B"))
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    told(seconds, busy, memory.peak - memory.start)


def mergekit(workdir: pathlib.Path, command: str) -> None:
    lines = ["merge_method: linear", "dtype: float32", "models:"]
    for path, weight in zip(models(workdir), WEIGHTS):
        lines += [f"  - model: {path}", f"    parameters: {{weight: {weight!r}}}"]
    config = workdir / "mergekit.yml"
    config.write_text("\n".join(lines) + "\n")
    words = [command, str(config), str(workdir / "out"), "--no-copy-tokenizer"]
    start = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    told(time.perf_counter() - start, 0.0, 0)


def told(seconds: float, busy: float, memory: int) -> None:
    print(json.dumps({"seconds": seconds, "cpu": busy, "memory": memory}))


def main() -> None:
    parser = argparse.ArgumentParser(description="Merges files, and times it.")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mergekit", help="its mergekit-yaml")
    parser.add_argument("--one", choices=("ours", "floor", "mergekit"))
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    if args.one == "mergekit":
        return mergekit(args.workdir, args.mergekit)
    if args.one:
        return {"ours": ours, "floor": floor}[args.one](args.workdir)
    models(args.workdir)
    rows: dict[str, list[dict]] = {"ours": [], "floor": []}
    extra = ["--mergekit", args.mergekit] if args.mergekit else []
    rows |= {"mergekit": []} if args.mergekit else {}
    for _ in range(args.rounds):
        for name, found in rows.items():
            shutil.rmtree(args.workdir / "out", ignore_errors=True)
            words = ["--workdir", str(args.workdir), "--one", name, *extra]
            found.append(fresh(__file__, *words))
    print(versions())
    for name, found in rows.items():
        seconds = [row["seconds"] for row in found]
        print(
            f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to "
            f"{max(seconds):.2f}), {statistics.median(r['cpu'] for r in found):.2f} "
            f"CPU s, {max(r['memory'] for r in found) / 2**20:.0f} MiB"
        )
    ratio = statistics.median(
        a["seconds"] / b["seconds"] for a, b in zip(rows["ours"], rows["floor"])
    )
    largest = max(4 * x.size for x in jax.tree.leaves(decoder().abstract_params()))
    memory = max(row["memory"] for row in rows["ours"])
    fits = memory <= 2 * largest + 100e6
    print(f"ours / floor: {ratio:.2f}; memory within the bar: {fits}")
    sys.exit(0 if ratio <= 3 and fits else 1)


if __name__ == "__main__":
    main()
