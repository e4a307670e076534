"""What the fusion weights cost, and how good they are: on margins against Adam.

    export TPMM_ASSETS=...     # docs/models.md, "The stories260k model"
    python benchmarks/fusion.py --workdir runs/fusion

Makes a run of 16 iterations of configs/stories260k.py (few evaluation prompts, 40 % of
the labels flipped, rule previous), which the same command continues. Then, at K = 2, 8
and 16 checkpoints, on all hold-outs of the iterations before:

    passes    of one policy over one hold-out
    seconds   of those passes and of the fit; the second of two, so nothing is compiled
    memory    peak of the process, a process each
    loss      mean of log(1 + exp(-c D)) of the merged model on those pairs, c fitted

Adam's 100 steps are reference.fit=adam's. Both are given the anchor's log-probs.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "configs"), str(ROOT)]

SIZES = (2, 8, 16)
OVERRIDES = [
    "iterations=16",
    "reference.rule=previous",
    "pairing.flip_probability=0.4",
    "train.learning_rate=2e-4",
    "evaluation.num_prompts=2",
    "evaluation.sets={}",
]


def measure(workdir: pathlib.Path, count: int, fit: str) -> dict[str, Any]:
    """Returns the numbers of one fit at K = count."""
    import stories260k

    from tpmm_jax.config import set_field
    from tpmm_jax.log.console import RunConsole
    from tpmm_jax.loop import held_out
    from tpmm_jax.loop.reference import runnable
    from tpmm_jax.loop.setup import open_run
    from tpmm_jax.merging import Deltas
    from tpmm_jax.merging.learned import learn, softmax
    from tpmm_jax.merging.margins import fit_weights
    from tpmm_jax.merging.rules import anchored

    config = stories260k.get_config()
    for override in OVERRIDES:
        config = set_field(config, override)
    passes = 0
    compute = held_out._compute

    def counted(*args: Any) -> Any:
        nonlocal passes
        passes += len(args[4])
        return compute(*args)

    held_out._compute = counted
    with open(workdir / "log.txt", "a", encoding="utf-8") as log:
        console = RunConsole(log, log)
        with open_run(config, workdir / "run", console) as run:
            plan, disk, voice = run.plan, run.disk, run.voice
            # Nothing is known, and nothing is kept.
            held_out._read_known = lambda *_: {}
            held_out._read_evaluated = lambda *_: None
            held_out.write_npz = lambda *_: None
            which = range(count) if fit == "margins" else range(1)
            found: dict[str, Any] = {"K": count, "fit": fit}
            for _ in range(2):
                passes, started = 0, time.monotonic()
                pairs = held_out.held_out_pairs(
                    plan, disk, voice, count, range(1, count + 1), which
                )
                found["pass_seconds"] = time.monotonic() - started
                problem = runnable(plan, pairs, count)
                scratch = workdir / f"scratch-{count}-{fit}"
                with Deltas(scratch, disk.policy, count, ["model"]) as deltas:
                    started = time.monotonic()
                    if fit == "margins":
                        margins = pairs.margins(length_normalized=False)
                        fitted = fit_weights(margins)
                        weights_GK = np.append(0.0, fitted.weights_K)[None]
                        weights_GK = anchored(weights_GK, 0.5)
                        found["learned"] = fitted.learned
                    else:
                        weights_GK = softmax(learn(deltas, problem)[0])
                    found["fit_seconds"] = time.monotonic() - started
                    found["loss"] = problem.loss(deltas.merge(weights_GK))
            found |= {"passes": passes, "pairs": len(pairs.rows)}
    found["weights"] = np.round(weights_GK[0], 3).tolist()
    # Not ru_maxrss, which begins with what the process that started this one held.
    status = pathlib.Path("/proc/self/status").read_text()
    found["peak_mib"] = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs=2, metavar=("K", "FIT"), help="in this process")
    args = parser.parse_args()
    workdir = args.workdir.resolve()
    if args.only:
        print(json.dumps(measure(workdir, int(args.only[0]), args.only[1])))
        return
    from tpmm_jax.commands import train

    sets = [part for override in OVERRIDES for part in ("--set", override)]
    config = str(ROOT / "configs" / "stories260k.py")
    code = train.main(["--config", config, "--workdir", str(workdir / "run"), *sets])
    if code:
        sys.exit(code)
    rows = []
    for count in SIZES:
        for fit in ("margins", "adam"):
            command = [sys.executable, __file__, "--workdir", str(workdir)]
            made = subprocess.run(
                [*command, "--only", str(count), fit],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            rows.append(json.loads(made.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    head = "| K | fit | pairs | passes | their s | fit s | peak MiB | loss |"
    print(head + "\n" + "|---" * 8 + "|")
    for row in rows:
        print(
            f"| {row['K']} | {row['fit']} | {row['pairs']} | {row['passes']} | "
            f"{row['pass_seconds']:.2f} | {row['fit_seconds']:.2f} | "
            f"{row['peak_mib']:.0f} | {row['loss']:.5f} |"
        )


if __name__ == "__main__":
    main()
